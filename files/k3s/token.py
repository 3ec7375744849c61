# Give the cluster a new token, on a server: the API that `k3s token rotate` uses, since that command takes tokens in argv.
# main(values): old, new, port
import base64
import json
import ssl
import sys
import urllib.error
import urllib.request

CA = "/var/lib/rancher/k3s/server/tls/server-ca.crt"


def main(values):
    request = urllib.request.Request(
        "https://127.0.0.1:{}/v1-k3s/token".format(values["port"]), method="PUT", data=json.dumps({"newToken": values["new"]}).encode(),
        headers={"Authorization": "Basic " + base64.b64encode(("server:" + values["old"]).encode()).decode()},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cafile=CA)):
            return
    except urllib.error.HTTPError as error:
        said = "the old token is not the cluster's" if error.code == 401 else f"the server says {error.code} {error.reason}"
    except OSError as error:
        said = "the server cannot be asked: {}".format(getattr(error, "reason", error))
    sys.stderr.write(f"token: {said}; the cluster keeps the token that it has\n")
    sys.exit(1)
