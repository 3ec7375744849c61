#!/bin/sh
# Read an image whose text is known, as a user and in each language: tesseract-proof USER LANGUAGE…
set -eu

image=/usr/local/share/hostwright/tesseract.png
known='4711 0815 2026'
user=$1
shift

for language in "$@"; do
	seen=$(cd / && runuser -u "$user" -- env OMP_THREAD_LIMIT=1 HOME=/ tesseract "$image" stdout -l "$language" --psm 7 2>&1 |
		tr -s '[:space:]' ' ' | sed 's/^ //; s/ $//')
	if [ "$seen" != "$known" ]; then
		printf '%s reads "%s" in %s where "%s" is written\n' "$user" "$seen" "$image ($language)" "$known" >&2
		exit 1
	fi
done
