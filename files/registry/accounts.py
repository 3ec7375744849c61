"""Docker's file of accounts, and what the registries say to them."""

import base64
import hashlib
import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request

CONFIGURATION = "/root/.docker/config.json"


def server(registry: str) -> str:
    """Return what Docker's file calls a registry: Docker Hub has a name of its own there."""
    return "https://index.docker.io/v1/" if registry == "docker.io" else registry


def read() -> dict:
    """Return Docker's file; empty when there is none, or none that can be read."""
    try:
        with open(CONFIGURATION, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def account(registry: str) -> str:
    """Return "user:password" as it is stored for a registry, in Docker's file or by its helper; empty for none."""
    configuration, name = read(), server(registry)
    helper = configuration.get("credHelpers", {}).get(registry) or configuration.get("credsStore")
    if helper:
        try:
            said = subprocess.run(
                ["docker-credential-" + helper, "get"],
                input=name,
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            ).stdout
            found = json.loads(said)
            return found["Username"] + ":" + found["Secret"]
        except (OSError, ValueError, KeyError, subprocess.SubprocessError):
            return ""
    stored = configuration.get("auths", {}).get(name, {}).get("auth", "")
    try:
        return base64.b64decode(stored).decode()
    except ValueError:
        return ""


def is_registered(registry: str) -> bool:
    """Whether Docker's file knows the registry at all, whatever it says of it."""
    return server(registry) in read().get("auths", {})


def seal(text: str, salt: str) -> str:
    """Return a hash that tells two accounts apart and is slow to guess from."""
    return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), 100_000).hex()


def _opener(registry: str) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    ca = f"/etc/docker/certs.d/{registry}/ca.crt"
    if os.path.exists(ca):
        context.load_verify_locations(ca)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))


def _ask(opener: urllib.request.OpenerDirector, url: str, login: str) -> tuple:
    """Return the status of a request and how the registry wants to be asked."""
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.headers.get("WWW-Authenticate") or ""


def verdict(registry: str, login: str) -> str:
    """Ask the registry about an account: "accepted", "refused", or "unknown" when it gives no clear answer."""
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    try:
        opener = _opener(registry)
        status, wants = _ask(opener, f"https://{host}/v2/", "")
        if status == 200:
            return "accepted"
        if wants.lower().startswith("bearer"):
            told = dict(re.findall(r'(\w+)="([^"]*)"', wants))
            query = urllib.parse.urlencode(
                {"service": told.get("service", ""), "account": login.partition(":")[0]}
            )
            if not told.get("realm", "").startswith("https://"):
                return "unknown"
            status, _ = _ask(opener, f"{told['realm']}?{query}", login)
        else:
            status, _ = _ask(opener, f"https://{host}/v2/", login)
    except (OSError, ValueError):
        return "unknown"
    return {200: "accepted", 401: "refused", 403: "refused"}.get(status, "unknown")
