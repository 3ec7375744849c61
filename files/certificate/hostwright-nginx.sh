#!/bin/sh
# certbot's deploy hook, and the last step of a first issue: nginx serves the new pair, or goes on with the old one.
# A hook in this directory runs after every renewal, whoever started it; certbot sets RENEWED_LINEAGE.
set -eu

name=$(basename -- "$RENEWED_LINEAGE")
link=/etc/hostwright/tls/$name
# A certificate that is not ours is not for us to deploy.
[ -e "$link" ] || [ -L "$link" ] || exit 0
# A directory made by hand is kept beside.
if [ ! -L "$link" ]; then
	replaced=$link.replaced-$(date +%Y%m%dT%H%M%S)
	mv -- "$link" "$replaced"
	ln -s -- "$replaced" "$link"
fi

link_to() {
	ln -sfn -- "$1" "$link.new"
	mv -fT -- "$link.new" "$link"
}

serial() { openssl x509 -noout -serial 2>/dev/null; }
served_serial() {
	timeout 5 openssl s_client -connect 127.0.0.1:443 -servername "$domain" </dev/null 2>/dev/null | serial
}

previous=$(readlink -- "$link")
[ "$previous" = "$RENEWED_LINEAGE" ] || link_to "$RENEWED_LINEAGE"

# One that is stopped reads the new pair when it starts.
systemctl -q is-active nginx.service || exit 0
if ! said=$(nginx -t -q 2>&1); then
	link_to "$previous"
	printf 'nginx does not accept the new certificate of %s, it was not reloaded:\n%s\n' "$name" "$said" >&2
	exit 1
fi
systemctl reload nginx.service

# The reload is over when nginx serves the new serial. A name that no site serves has nothing to wait for.
domain=$(openssl x509 -noout -ext subjectAltName -in "$RENEWED_LINEAGE/cert.pem" | sed -n 's/^ *DNS:\([^,]*\).*/\1/p' | sed 's/^\*/probe/')
wanted=$(serial <"$RENEWED_LINEAGE/cert.pem")
end=$(($(date +%s) + 10))
while served=$(served_serial) && [ "$served" != "$wanted" ]; do
	if [ "$(date +%s)" -ge "$end" ]; then
		echo "nginx was reloaded and yet serves another certificate for $domain than $RENEWED_LINEAGE" >&2
		exit 1
	fi
	sleep 0.2
done
