# Point the stable path of a certificate at one of its pairs.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   link         the stable path, e.g. /etc/hostwright/tls/shop
#   self_signed  directory that holds the self-signed pairs of this name
say() { printf '%s\n' "$*" >&2; }

link_to() { # link_to DIRECTORY: one rename, so that nginx finds a whole pair at any moment
	(umask 022 && mkdir -p -- "$(dirname -- "$link")")
	if [ -e "$link" ] && [ ! -L "$link" ]; then # made by hand: kept, not merged
		mv -- "$link" "$link.replaced-$(date +%Y%m%dT%H%M%S)"
	fi
	ln -sfn -- "$1" "$link.new"
	mv -fT -- "$link.new" "$link"
}

make_self_signed() { # make_self_signed DOMAIN...: a new pair, and the stable path on it
	(umask 077 && mkdir -p -- "$self_signed")
	_pair=$(mktemp -d "$self_signed/XXXXXXXX")
	# Ten years: it is replaced by a real one, and one that ran out would only break the health checks.
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -sha256 \
		-subj '/CN=self-signed by hostwright' -addext "subjectAltName=$(printf 'DNS:%s,' "$@" | sed 's/,$//')" \
		-keyout "$_pair/privkey.pem" -out "$_pair/fullchain.pem" 2>/dev/null || {
		rm -rf -- "$_pair"
		say "openssl could not make a self-signed certificate for $*"
		return 1
	}
	chmod 0600 "$_pair/privkey.pem"
	sync -- "$_pair/privkey.pem" "$_pair/fullchain.pem"
	link_to "$_pair"
	find "$self_signed" -mindepth 1 -maxdepth 1 ! -path "$_pair" -exec rm -rf -- {} +
}
