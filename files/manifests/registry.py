# ruff: noqa: F821 - sent to a host behind cluster.py, as one program
"""Asks the registries what an image is made for, by their HTTP API; one that does not answer says nothing."""

import urllib.error
import urllib.parse
import urllib.request

LISTS = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
ONES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
REGISTRY_SECONDS = 20


class NoAnswer(Exception):
    pass


class Denied(Exception):
    pass


class NotThere(Exception):
    pass


def _get(url, accept, headers):
    request = urllib.request.Request(url, headers={"Accept": ", ".join(accept), **headers})
    try:
        with urllib.request.urlopen(request, timeout=REGISTRY_SECONDS) as answer:
            return answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return None, error.headers
        if error.code == 404:
            raise NotThere from None
        if error.code == 403:
            raise Denied from None
        raise NoAnswer(str(error)) from None
    except (OSError, ValueError) as error:
        raise NoAnswer(str(error)) from None


def _basic(account):
    return "Basic " + base64.b64encode(f"{account[1]}:{account[2]}".encode()).decode()


class ImageRegistry:
    """One repository of one registry."""

    def __init__(self, image, account):
        host, _, rest = image.partition("/")
        self.account = account if account and account[0] == host else None
        self.base = f"https://{'registry-1.docker.io' if host == 'docker.io' else host}/v2"
        name, _, self.reference = rest.partition("@")
        if not self.reference:
            name, _, self.reference = rest.rpartition(":")
        self.name = name.rpartition(":")[0] if ":" in name else name
        self.headers = {}

    def read(self, kind, reference, accept=("*/*",)):
        url = f"{self.base}/{self.name}/{kind}/{reference}"
        body, headers = _get(url, accept, self.headers)
        if body is None:
            self._log_in(headers.get("WWW-Authenticate", ""))
            body, headers = _get(url, accept, self.headers)
            if body is None:
                raise Denied
        return json.loads(body)

    def _log_in(self, challenge):
        if challenge.lower().startswith("bearer"):
            asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
            query = urllib.parse.urlencode({k: asked[k] for k in ("service", "scope") if k in asked})
            body, _ = _get(f"{asked['realm']}?{query}", ("application/json",), {"Authorization": _basic(self.account)} if self.account else {})
            if body is None:
                raise Denied
            answer = json.loads(body)
            self.headers = {"Authorization": f"Bearer {answer.get('token') or answer.get('access_token')}"}
        elif self.account:
            self.headers = {"Authorization": _basic(self.account)}
        else:
            raise Denied

    def architectures(self):
        found = self.read("manifests", self.reference, (*LISTS, *ONES))
        if "manifests" in found:
            return {one["platform"]["architecture"] for one in found["manifests"] if one.get("platform", {}).get("os") == "linux"}
        return {self.read("blobs", found["config"]["digest"]).get("architecture", "")}


def image_faults(wanted, account, given_by):
    """Return what is wrong with images: ``wanted`` is image -> {"architectures": […], "workloads": […]}."""
    faults = []
    for image, its in sorted(wanted.items()):
        who = ", ".join(its["workloads"])
        try:
            found = ImageRegistry(image, account).architectures()
        except NotThere:
            faults.append(f"image {image} of {who} is not in its registry")
        except Denied:
            faults.append(f"image {image} of {who}: the registry refuses the account, write another one in {given_by}")
        except (NoAnswer, KeyError, ValueError):
            continue  # a node may have it, or reach it by a mirror
        else:
            lacking = sorted(set(its["architectures"]) - found)
            if lacking:
                faults.append(f"image {image} of {who} is made for {', '.join(sorted(found)) or 'nothing'}; nodes that {who} may run on are {', '.join(sorted(its['architectures']))}")
    return faults
