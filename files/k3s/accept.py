# Put ACCEPT rules in front of the first REJECT of a chain, now and in what is loaded at boot. Nothing is flushed, nothing else touched.
# main(values): rules {"INPUT": [...], "FORWARD": [...]} as `iptables -S` prints them, without the -A CHAIN; file
import os
import subprocess
import sys

MARK = '-m comment --comment "hostwright k3s"'


def iptables(*words):
    done = subprocess.run(["iptables", "-w", "30", *words], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        sys.stderr.write("iptables {}: {}\n".format(" ".join(words), done.stderr.decode().strip()))
        sys.exit(1)
    return done.stdout.decode().splitlines()


def split(rule):
    import shlex

    return shlex.split(rule)


def is_reject(line, chain):
    return line.startswith(f"-A {chain} ") and " -j REJECT" in line


def live(chain, wanted):
    """Ours that nobody wants any more go; those that are missing come in front of the first REJECT."""
    lines = iptables("-S", chain)
    ours = [line for line in lines if MARK in line]
    full = [f"-A {chain} {rule}" for rule in wanted]
    first = next((at for at, line in enumerate(lines) if is_reject(line, chain)), len(lines))
    for line in ours:
        if line not in full or lines.index(line) > first:
            iptables("-D", *split(line)[1:])
    lines = iptables("-S", chain)
    for rule in wanted:
        if f"-A {chain} {rule}" not in lines:
            rules = [one for one in lines if one.startswith(f"-A {chain} ")]
            place = next((at for at, one in enumerate(rules) if is_reject(one, chain)), len(rules)) + 1
            iptables("-I", chain, str(place), *split(rule))
            lines = iptables("-S", chain)


def saved(lines, chain, wanted):
    """The same in the text of rules.v4."""
    kept = [line for line in lines if not (line.startswith(f"-A {chain} ") and MARK in line)]
    inside, at = False, None
    for number, line in enumerate(kept):
        if line.startswith("*"):
            inside = line.strip() == "*filter"
        if inside and (is_reject(line, chain) or line.strip() == "COMMIT"):
            at = number
            break
    if at is None:
        sys.stderr.write(f"{chain}: has no table filter; write the rules yourself\n")
        sys.exit(1)
    return kept[:at] + [f"-A {chain} {rule}" for rule in wanted] + kept[at:]


def main(values):
    path = values["file"]
    for chain, wanted in values["rules"].items():
        live(chain, wanted)
    if not os.path.exists(path):
        return
    with open(path) as file:
        before = lines = file.read().splitlines()
    for chain, wanted in values["rules"].items():
        lines = saved(lines, chain, wanted)
    if lines != before:
        about = os.stat(path)
        with open(path + ".new", "w") as file:
            os.fchmod(file.fileno(), about.st_mode & 0o777)
            os.fchown(file.fileno(), about.st_uid, about.st_gid)
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)
