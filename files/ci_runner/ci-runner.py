#!/usr/bin/python3 -I
"""
Runners of GitHub Actions on this host: register, clean, unregister. Run as root; jobs run as users without any right.

    ci-runner prepare N      before a runner starts: pristine files, a registration of its own
    ci-runner clean N        after it: what the job left behind is gone
    ci-runner remove N       stop it, take it out of the list, remove its user and files
    ci-runner sweep          caches that nobody reads, files of runners that are gone, what jobs left in Docker
    ci-runner status         one line of JSON for each runner

/etc/hostwright/ci-runner has config.json and token (0600). A token goes to the API in a header and to the runner's own
config.sh in its environment, which it takes away before it starts anything: never in argv, never to a job.
"""

import calendar
import contextlib
import json
import os
import platform
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

CONFIG = "/etc/hostwright/ci-runner"
HOMES = "/var/lib/ci-runner"
CACHES = "/var/cache/ci-runner"
RUN = "/run/ci-runner"
FRESH = ".new"
API_SECONDS = 30


class Failure(Exception):
    pass


def config():
    with open(f"{CONFIG}/config.json") as file:
        return json.load(file)


def token():
    with contextlib.suppress(FileNotFoundError), open(f"{CONFIG}/token") as file:
        return file.read().strip()
    return ""


def user(number):
    return f"ci-runner-{number}"


def title(settings, number):
    return f"{settings['host']}-{number}"


def ask(settings, method, path):
    """Ask the API. What it says is shown, the token is not."""
    request = urllib.request.Request(
        f"{settings['api']}/{settings['scope']}/actions/runners{path}", method=method, data=b"" if method == "POST" else None,
        headers={"Authorization": f"Bearer {token()}", "Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28", "User-Agent": "hostwright"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=API_SECONDS) as answer:
            body = answer.read()
            return json.loads(body) if body else {}
    except urllib.error.HTTPError as error:
        if error.code == 404 and method == "DELETE":
            return {}
        reason = {401: "the access token is not accepted", 403: "the access token may not register runners", 404: "no such repository or organisation for this token"}
        raise Failure(f"{settings['scope']}: {reason.get(error.code, f'the API answers {error.code}')}") from None
    except (OSError, ValueError) as error:
        raise Failure(f"{settings['api']} does not answer: {error}") from None


def registered(settings):
    """Return the id of each runner that the API knows, by name."""
    found, page = {}, 1
    while True:
        runners = ask(settings, "GET", f"?per_page=100&page={page}").get("runners", [])
        found.update({one["name"]: one["id"] for one in runners})
        if len(runners) < 100:
            return found
        page += 1


def account(number):
    try:
        return pwd.getpwnam(user(number))
    except KeyError:
        raise Failure(f"user {user(number)} is not there") from None


def end_processes(number):
    """Stop whatever a job left running: the unit's own are gone already."""
    with contextlib.suppress(KeyError):
        uid = pwd.getpwnam(user(number)).pw_uid
        for _ in range(20):
            left = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _uid(entry) == uid]
            if not left:
                return
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


def _uid(process):
    try:
        return os.stat(f"/proc/{process}").st_uid
    except OSError:
        return -1


def home(number):
    return f"{HOMES}/{number}"


def directory(path, mode):
    """Make a directory with a mode, whatever the umask."""
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)


def wipe(number, keep=""):
    """Empty a runner's home, which its unit has as a mount, but for one entry. Nothing of a job's is followed out of it."""
    end_processes(number)
    for entry in os.listdir(home(number)) if os.path.isdir(home(number)) else ():
        if entry != keep:
            discard(f"{home(number)}/{entry}")


def discard(path):
    """Remove what is called so, whatever a job may have put there; a link is not followed."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)
    if os.path.lexists(path):
        raise Failure(f"{path} cannot be removed")


def release(settings):
    """Return the directory of the release for this architecture."""
    kernel = platform.machine()
    name = settings["release"].get({"x86_64": "x64", "aarch64": "arm64"}.get(kernel, ""))
    if not name:
        raise Failure(f"no release is pinned for {kernel}")
    return f"/opt/ci-runner/{name}"


def lay_out(settings, number, where):
    """Copy the release: the runner writes beside its own programs."""
    its = account(number)
    directory(HOMES, 0o755)
    directory(where, 0o700)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{release(settings)}/.", where], check=True)
    for name in ("_work", "home"):
        os.makedirs(f"{where}/{name}", exist_ok=True)
    subprocess.run(["chown", "-R", "--no-dereference", f"{its.pw_uid}:{its.pw_gid}", where], check=True)
    os.chmod(where, 0o700)


def variables(settings, number):
    lines = {"HOME": f"{home(number)}/home", "RUNNER_ALLOW_RUNASROOT": "", "DISABLE_RUNNER_UPDATE": "1"}
    if settings["cache"]:
        cache = f"{CACHES}/{number}"
        lines |= {"RUNNER_TOOL_CACHE": f"{cache}/tools", "AGENT_TOOLSDIRECTORY": f"{cache}/tools", "PIP_CACHE_DIR": f"{cache}/pip", "npm_config_cache": f"{cache}/npm", "XDG_CACHE_HOME": f"{cache}/xdg"}  # fmt: skip
    return {key: value for key, value in lines.items() if value}


def prepare(number):
    settings = config()
    its = account(number)
    is_there = os.path.exists(f"{home(number)}/.runner") and mark(number) == settings["mark"]
    if settings["ephemeral"]:
        wipe(number)
        lay_out(settings, number, home(number))
        register(settings, number, its, home(number))
    elif not is_there:
        renew(settings, number, its)
    if settings["cache"]:
        directory(CACHES, 0o755)
        directory(f"{CACHES}/{number}", 0o700)
        os.chown(f"{CACHES}/{number}", its.pw_uid, its.pw_gid)
    directory(RUN, 0o755)
    with open(f"{RUN}/{number}.env", "w") as file:
        file.write("".join(f'{key}="{value}"\n' for key, value in variables(settings, number).items()))
    with open(f"{RUN}/{number}.mark", "w") as file:
        file.write(mark(number))


def renew(settings, number, its):
    """Register a long-lived runner beside the one that is there: it goes on as it was when that fails, for its token may have run out."""
    # in its home: the unit has that as a mount, out of which nothing can be renamed
    fresh = f"{home(number)}/{FRESH}"
    end_processes(number)  # nobody puts a link there meanwhile
    try:
        directory(HOMES, 0o755)
        directory(home(number), 0o700)
        os.chown(home(number), its.pw_uid, its.pw_gid)
        discard(fresh)
        lay_out(settings, number, fresh)
        register(settings, number, its, fresh)
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        discard(fresh)
        if not os.path.exists(f"{home(number)}/.runner"):
            raise
        sys.stderr.write(f"ci-runner: {failure}; runner {number} goes on as it was registered before\n")
        return
    wipe(number, keep=FRESH)
    for entry in sorted(os.listdir(fresh), key=lambda entry: entry == ".runner"):  # the last one: what says that it is whole
        os.rename(f"{fresh}/{entry}", f"{home(number)}/{entry}")
    os.rmdir(fresh)
    note(settings, number)


def note(settings, number):
    with open(f"{HOMES}/.{number}.mark", "w") as file:
        file.write(settings["mark"])


def mark(number):
    """Return what a runner was registered with; it stands where its user cannot write."""
    with contextlib.suppress(FileNotFoundError), open(f"{HOMES}/.{number}.mark") as file:
        return file.read()
    return ""


def register(settings, number, its, where):
    secret = ask(settings, "POST", "/registration-token")["token"] if settings["has_access_token"] else token()
    if not secret:
        raise Failure("there is no token to register with")
    words = ["./config.sh", "--unattended", "--replace", "--disableupdate", "--url", settings["url"], "--name", title(settings, number), "--work", "_work"]
    if settings["labels"]:
        words += ["--labels", ",".join(settings["labels"])]
    if settings["group"]:
        words += ["--runnergroup", settings["group"]]
    if settings["ephemeral"]:
        words.append("--ephemeral")
    ended = subprocess.run(
        words, cwd=where, user=its.pw_uid, group=its.pw_gid, extra_groups=[], text=True, errors="replace", timeout=180,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": f"{where}/home", "ACTIONS_RUNNER_INPUT_TOKEN": secret},
    )  # fmt: skip
    if ended.returncode:
        raise Failure(f"config.sh: {ended.stdout.replace(secret, '*MASKED*').strip()[-400:]}")
    if where == home(number):
        note(settings, number)


def clean(number):
    end_processes(number)
    if config()["ephemeral"]:
        wipe(number)
    for name in (f"{RUN}/{number}.env", f"{RUN}/{number}.mark"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def remove(number):
    """Unregister first: what is in the list and nowhere else would wait for jobs for ever."""
    settings = config()
    subprocess.run(["systemctl", "disable", "--now", f"ci-runner@{number}.service"], check=False, stderr=subprocess.DEVNULL)
    if settings["has_access_token"]:
        identity = registered(settings).get(title(settings, number))
        if identity is not None:
            ask(settings, "DELETE", f"/{identity}")
    elif os.path.exists(f"{home(number)}/.runner"):
        sys.stdout.write(f"{title(settings, number)} is still in the list: without an access token it cannot be taken out, do so in the web\n")
    wipe(number)
    for path in (home(number), f"{CACHES}/{number}"):
        shutil.rmtree(path, ignore_errors=True)
    for name in (f"{HOMES}/.{number}.mark", f"{RUN}/{number}.env", f"{RUN}/{number}.mark"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    with contextlib.suppress(KeyError):
        pwd.getpwnam(user(number))
        subprocess.run(["userdel", user(number)], check=True)
    subprocess.run(["systemctl", "reset-failed", f"ci-runner@{number}.service"], check=False, stderr=subprocess.DEVNULL)


def sweep():
    settings = config()
    oldest = time.time() - settings["cache_keep_days"] * 86400
    for top, _, files in os.walk(CACHES):
        for name in files:
            path = os.path.join(top, name)
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if max(status.st_atime, status.st_mtime) < oldest:
                    os.unlink(path)
    for top, folders, files in os.walk(CACHES, topdown=False):
        if not folders and not files and top.count("/") > CACHES.count("/") + 1:
            with contextlib.suppress(OSError):
                os.rmdir(top)
    numbers = {str(number) for number in range(1, settings["count"] + 1)}
    for place in (HOMES, CACHES):
        for entry in os.listdir(place) if os.path.isdir(place) else ():
            if re.fullmatch(r"[0-9]+", entry) and entry not in numbers:
                shutil.rmtree(f"{place}/{entry}", ignore_errors=True)
    if settings["docker_keep_hours"]:
        sweep_docker(settings["docker_keep_hours"])


def docker(*words):
    return subprocess.run(["docker", *words], env={**os.environ, "HOME": "/nonexistent"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout


def sweep_docker(hours):
    """What jobs left in Docker: the host has nothing else in it. What runs goes only while no runner has a job."""
    busy = any(is_busy(entry.pw_uid) for entry in pwd.getpwall() if re.fullmatch(r"ci-runner-[0-9]+", entry.pw_name))
    oldest = time.time() - hours * 3600
    for identity in [] if busy else docker("ps", "--quiet", "--no-trunc").split():
        began = docker("inspect", "--format", "{{.State.StartedAt}}", identity).strip()
        if calendar.timegm(time.strptime(began[:19], "%Y-%m-%dT%H:%M:%S")) < oldest:
            sys.stdout.write("remove " + docker("rm", "--force", "--volumes", identity))
    sys.stdout.write(docker("system", "prune", "--all", "--force", "--filter", f"until={hours}h"))


def status():
    found = {}
    for entry in pwd.getpwall():
        if match := re.fullmatch(r"ci-runner-([0-9]+)", entry.pw_name):
            number = int(match[1])
            shown = subprocess.run(
                ["systemctl", "show", f"ci-runner@{number}.service", "--property=ActiveState,UnitFileState,SubState,NRestarts"],
                text=True, stdout=subprocess.PIPE, check=False,
            ).stdout  # fmt: skip
            state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
            running = ""
            with contextlib.suppress(FileNotFoundError), open(f"{RUN}/{number}.mark") as file:
                running = file.read()
            found[number] = {
                "active": state.get("ActiveState", ""), "enabled": state.get("UnitFileState", "") == "enabled",
                "is_busy": is_busy(entry.pw_uid), "mark": running,
            }  # fmt: skip
    sys.stdout.write(json.dumps({"architecture": platform.machine(), "runners": found}) + "\n")


def is_busy(uid):
    """Whether a job runs: its process has that name."""
    for process in os.listdir("/proc"):
        if process.isdigit() and _uid(process) == uid:
            with contextlib.suppress(OSError), open(f"/proc/{process}/cmdline", "rb") as file:
                if b"Runner.Worker" in file.read():
                    return True
    return False


def main(words):
    if words and words[0] in ("prepare", "clean", "remove") and len(words) == 2 and re.fullmatch(r"[1-9][0-9]?", words[1]):
        {"prepare": prepare, "clean": clean, "remove": remove}[words[0]](int(words[1]))
    elif words in (["sweep"], ["status"]):
        {"sweep": sweep, "status": status}[words[0]]()
    else:
        raise Failure("prepare N | clean N | remove N | sweep | status")


if __name__ == "__main__":
    os.umask(0o077)
    try:
        main(sys.argv[1:])
    except Failure as failure:
        sys.stderr.write(f"ci-runner: {failure}\n")
        sys.exit(1)
