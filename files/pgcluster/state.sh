# What a cluster of PostgreSQL is, and what it has of one database: one command.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   cluster    name of the cluster;   settings  names of settings, as a list of SQL literals
#   database   name of the database, or empty;   roles  names of its roles, one SQL literal a line
ask() { # database sql
	# on stdin: psql before 15 prints the last answer alone of several statements behind -c
	(cd / && printf '%s\n' "$2" | timeout 30 runuser -u postgres -- psql -XAtq -F '	' -h /run/postgresql -p "$port" -d "$1" 2>/dev/null)
}

literal() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"; }

look() {
	awk '/^MemTotal:/ { printf "memory\t%d\n", $2 / 1024 }' /proc/meminfo
	command -v pg_lsclusters >/dev/null || return 0
	# the newest version that has a cluster of this name
	found=$(pg_lsclusters -h 2>/dev/null | awk -v name="$cluster" '$2 == name { print $1, $3 }' | sort -n | tail -n 1)
	find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | sed 's|/usr/lib/postgresql/\(.*\)/bin/postgres|installed\t\1|'
	[ -n "$found" ] || return 0
	version=${found% *} port=${found#* }
	printf 'cluster\t%s\t%s\n' "$version" "$port"
	ask postgres "
		SELECT 'setting', name, setting, context, current_setting(name) FROM pg_settings WHERE name IN (${settings:-''});
		SELECT DISTINCT 'overridden', name FROM pg_file_settings
		WHERE name IN (${settings:-''}) AND sourcefile LIKE '%/postgresql.auto.conf'"
	[ -n "$database" ] || return 0
	name=$(literal "$database")
	ask postgres "
		SELECT 'role', rolname, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls,
			rolcanlogin, rolconnlimit, coalesce(rolpassword, ''),
			EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)
		FROM pg_authid r WHERE rolname IN (${roles:-''});
		SELECT 'database', pg_get_userbyid(datdba),
			EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) a WHERE a.grantee = 0)
		FROM pg_database WHERE datname = $name"
	ask "$database" "
		SELECT 'extension', extname FROM pg_extension;
		SELECT 'schema', pg_get_userbyid(nspowner),
			EXISTS (SELECT FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a WHERE a.grantee = 0)
		FROM pg_namespace WHERE nspname = 'public';
		SELECT 'connect', rolname FROM pg_roles WHERE rolname IN (${roles:-''}) AND
			has_database_privilege(oid, $name, 'CONNECT') AND has_schema_privilege(oid, 'public', 'USAGE');
		SELECT 'right', a.grantee::regrole, d.defaclobjtype, a.privilege_type
		FROM pg_default_acl d, aclexplode(d.defaclacl) a WHERE d.defaclnamespace = 'public'::regnamespace AND a.grantee <> 0;
		SELECT DISTINCT 'lacks', r.rolname, p.privilege FROM pg_class c, pg_roles r,
			(VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) p(privilege)
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND r.rolname IN (${roles:-''})
			AND NOT has_table_privilege(r.oid, c.oid, p.privilege);
		SELECT DISTINCT 'lacks', r.rolname, 'USAGE' FROM pg_class c, pg_roles r
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND r.rolname IN (${roles:-''})
			AND NOT has_sequence_privilege(r.oid, c.oid, 'USAGE');
		SELECT DISTINCT 'has', r.rolname, p.privilege FROM pg_class c, pg_roles r,
			(VALUES ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE')) p(privilege)
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND r.rolname IN (${roles:-''})
			AND has_table_privilege(r.oid, c.oid, p.privilege)"
	return 0
}

look || true
