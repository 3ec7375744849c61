# ruff: noqa: F821 - names of psql.py, which comes before it
# What of the schema of an archive is there, and what is changed about it. It comes after psql.py.
#
#     values: server  container, host, port, admin, database; + roles  whose rights are told; + sql  to carry out, or empty
import json
import sys

TABLES = ("completed_games", "game_events")


def look(server, roles):
    found = {"answers": False, "exists": False, "version": 0, "tables": [], "owner": "", "roles": [], "has": [], "verifiers": {}}
    listed = "', '".join(roles)
    try:
        found["answers"] = bool(psql(server, "SELECT 1", "postgres"))
        found["roles"] = [row[0] for row in psql(server, f"SELECT rolname FROM pg_roles WHERE rolname IN ('{listed}')", "postgres")]
        rows = psql(server, f"SELECT rolname, rolpassword FROM pg_authid WHERE rolname IN ('{listed}') AND rolpassword IS NOT NULL", "postgres")
        found["verifiers"] = dict(rows)
        found["exists"] = bool(psql(server, "SELECT 1 FROM pg_database WHERE datname = '{database}'".format(**server), "postgres"))
        if not found["exists"]:
            return found
        rows = psql(server, "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('archive') AND relkind IN ('r', 'p')")
        found["tables"] = [row[0] for row in rows]
        rows = psql(server, "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'archive'")
        found["owner"] = rows[0][0] if rows else ""
        if "schema_version" in found["tables"]:
            found["version"] = int(psql(server, "SELECT coalesce(max(version), 0) FROM archive.schema_version")[0][0])
        rights = ", ".join(f"('{right}')" for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"))
        for table in TABLES:
            if table in found["tables"]:
                found["has"] += psql(
                    server,
                    f"SELECT r.rolname, '{table}', p.p FROM pg_roles r, (VALUES {rights}) p(p) WHERE r.rolname IN ('{listed}') "
                    f"AND has_schema_privilege(r.oid, 'archive', 'USAGE') AND has_table_privilege(r.oid, 'archive.{table}', p.p)",
                )
    except (Failure, KeyError, OSError):
        pass
    return found


def main(values):
    if values["sql"]:
        try:
            psql(values["server"], values["sql"], one_transaction=True)
        except Failure as failure:
            sys.exit(f"archive: {failure}; nothing was changed")
    else:
        sys.stdout.write(json.dumps(look(values["server"], values["roles"])) + "\n")
