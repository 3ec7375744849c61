# Ask the ACME server for a certificate, and let nginx serve it. On failure what was there before serves on.
# shellcheck shell=sh disable=SC2154  # set in front of this script, besides those of link.sh:
#   cert_name domains email directory   what is asked for, of whom
#   challenge  http-01 | dns-01;  webroot;  dns_plugin  dns_credentials (path or empty)  dns_seconds (or empty)
#   ca_bundle  CA file of the ACME server, or empty
#   set_aside  yes when what certbot knows of this name is damaged and would make it start a second lineage
#   limit      how long certbot may take (s);  hook  the deploy hook
set -euf
umask 022

lineage() { for part in live archive renewal; do echo "$part"; done; }
place() { case $1 in renewal) echo "/etc/letsencrypt/renewal/$cert_name.conf" ;; *) echo "/etc/letsencrypt/$1/$cert_name" ;; esac; }

# certbot would call a name whose files are damaged "NAME-0001": it must not see them. They come back if this fails.
put_aside() {
	aside=$(umask 077 && mkdir -p /var/lib/hostwright/tls/damaged && mktemp -d "/var/lib/hostwright/tls/damaged/$cert_name.XXXXXXXX")
	for part in $(lineage); do
		[ ! -e "$(place "$part")" ] || mv -- "$(place "$part")" "$aside/$part"
	done
}

put_back() {
	[ -n "${aside:-}" ] || return 0
	for part in $(lineage); do
		[ ! -e "$aside/$part" ] || { rm -rf -- "$(place "$part")" && mv -- "$aside/$part" "$(place "$part")"; }
	done
	rmdir -- "$aside"
}

# The renewal timer may hold certbot's lock: it lets go within a minute or so.
wait_for_renewal() {
	_end=$(($(date +%s) + 120))
	while [ "$(systemctl show -p ActiveState --value certbot.service)" = activating ] && [ "$(date +%s)" -lt "$_end" ]; do
		sleep 1
	done
}

# certbot 2.1 on Python 3.11 loses the CA's answer to an order and says only "can't set attribute"
# (https://github.com/certbot/certbot/issues/9539); its log of this run has it.
said_by_ca() {
	sed -n 's/^acme\.messages\.Error: \(urn:ietf:params:acme:error:.*\)/\1/p' /var/log/letsencrypt/letsencrypt.log 2>/dev/null | tail -n 1
}

explain() { # explain STATUS OUTPUT
	case $2 in *"AttributeError: can't set attribute"*) set -- "$1" "$(said_by_ca)" ;; esac
	case $2 in
	*'too many'* | *rateLimited* | *'rate limit'*)
		say "the CA's rate limit is reached for $cert_name; running again before it is over only makes it longer:" ;;
	*'CERTIFICATE_VERIFY_FAILED'*)
		say "the ACME server's own certificate is not trusted (certificate_ca_bundle names the CA of a private one):" ;;
	*'Connection refused'* | *'Max retries exceeded'* | *'timed out'* | *'Failed to resolve'* | *'Name or service not known'*)
		say "the ACME server $directory does not answer:" ;;
	*'failed to authenticate'*)
		say "the ACME server could not verify the $challenge challenge for $cert_name:" ;;
	*)
		say "certbot failed for $cert_name:" ;;
	esac
	[ "$1" != 124 ] || say "    certbot was stopped after ${limit}s"
	printf '%s\n' "$2" | grep -v -e '^Saving debug log' -e '^Requesting a cert' -e '^Renewing an existing' -e '^Ask for help' \
		-e '^Some challenges have failed' -e '^An unexpected error occurred' -e '^ *$' | cut -c1-400 | tail -n 20 | sed 's/^/    /' >&2
	case $(readlink -- "$link" || :) in
	"$self_signed"/*) say "https serves a self-signed certificate until then; run again when this is put right" ;;
	*) say "https serves the certificate it had until then; run again when this is put right" ;;
	esac
}

main() {
	set -- certonly --non-interactive --agree-tos --cert-name "$cert_name" --server "$directory" \
		--force-renewal --renew-with-new-domains --break-my-certs --max-log-backups 20
	for domain in $domains; do set -- "$@" -d "$domain"; done
	if [ -n "$email" ]; then set -- "$@" --email "$email"; else set -- "$@" --register-unsafely-without-email; fi
	if [ "$challenge" = http-01 ]; then
		set -- "$@" --webroot --webroot-path "$webroot" --preferred-challenges http
	else
		set -- "$@" "--dns-$dns_plugin"
		[ -z "$dns_credentials" ] || set -- "$@" "--dns-$dns_plugin-credentials" "$dns_credentials"
		[ -z "$dns_seconds" ] || set -- "$@" "--dns-$dns_plugin-propagation-seconds" "$dns_seconds"
	fi
	[ -z "$ca_bundle" ] || export REQUESTS_CA_BUNDLE="$ca_bundle"

	wait_for_renewal
	[ -z "$set_aside" ] || put_aside
	if said=$(timeout -k 10 "$limit" certbot "$@" 2>&1); then
		RENEWED_LINEAGE=/etc/letsencrypt/live/$cert_name "$hook"
	else
		status=$?
		put_back
		explain "$status" "$said"
		exit 1
	fi
}
