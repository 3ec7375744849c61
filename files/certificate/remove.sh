# Give a certificate up: a self-signed pair takes its place, and certbot forgets the name (it would renew it for ever).
# shellcheck shell=sh disable=SC2154  # set in front of this script, besides those of link.sh:
#   cert_name  domains (separated by spaces)
set -euf

main() {
	case $(readlink -- "$link" || :) in
	/etc/letsencrypt/*)
		# shellcheck disable=SC2086  # one argument per domain
		make_self_signed $domains
		if systemctl -q is-active nginx.service && nginx -t -q; then systemctl reload nginx.service; fi
		;;
	esac
	certbot delete --non-interactive --cert-name "$cert_name" >&2
}
