"""The certificates of one cluster, by openssl, and kubeconfigs that hold them."""

import base64
import os
import subprocess

from parts import DATA, read, write

TLS = f"{DATA}/server/tls"


def openssl(*words: str, text: str = "") -> str:
    done = subprocess.run(["openssl", *words], input=text, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"openssl {words[0]}: {done.stderr[-500:]}")
    return done.stdout


def authority(name: str) -> None:
    if not os.path.exists(f"{TLS}/{name}.crt"):
        os.makedirs(TLS, mode=0o700, exist_ok=True)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650",
                "-subj", f"/CN=k3s-{name}", "-keyout", f"{TLS}/{name}.key", "-out", f"{TLS}/{name}.crt.new",
                "-addext", "keyUsage=critical,digitalSignature,keyCertSign")  # fmt: skip
        os.rename(f"{TLS}/{name}.crt.new", f"{TLS}/{name}.crt")


def certificate(ca: str, subject: str, names: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return a new certificate and its key."""
    key = openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout")
    place = f"{TLS}/.{os.getpid()}"
    write(f"{place}.key", key)
    request = openssl("req", "-new", "-key", f"{place}.key", "-subj", subject)
    lines = ["extendedKeyUsage=clientAuth,serverAuth", "keyUsage=critical,digitalSignature,keyEncipherment"]
    if names:
        lines.append("subjectAltName=" + ",".join(("IP:" if name.replace(".", "").isdigit() else "DNS:") + name for name in names))
    write(f"{place}.ext", "\n".join(lines) + "\n")
    try:
        made = openssl("x509", "-req", "-days", "365", "-CA", f"{TLS}/{ca}.crt", "-CAkey", f"{TLS}/{ca}.key",
                       "-set_serial", "0x" + os.urandom(15).hex(), "-extfile", f"{place}.ext", text=request)  # fmt: skip
    finally:
        for end in ("key", "ext"):
            os.unlink(f"{place}.{end}")
    return made, key


def kept(path: str, ca: str, subject: str, names: tuple[str, ...] = ()) -> None:
    """Make a certificate beside its key, once, or again for other names."""
    mark = ",".join(names)
    if os.path.exists(f"{path}.crt") and (not names or (os.path.exists(f"{path}.names") and read(f"{path}.names") == mark)):
        return
    made, key = certificate(ca, subject, names)
    write(f"{path}.key", key)
    write(f"{path}.names", mark)
    write(f"{path}.crt", made)


def kubeconfig(url: str, ca: str, made: str, key: str) -> str:
    data = {name: base64.b64encode(text.encode()).decode() for name, text in (("ca", ca), ("made", made), ("key", key))}
    return f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {data["ca"]}
    server: {url}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {{}}
users:
- name: default
  user:
    client-certificate-data: {data["made"]}
    client-key-data: {data["key"]}
"""


def kept_kubeconfig(path: str, url: str, subject: str, mode: int = 0o600) -> None:
    name = os.path.basename(path).partition(".")[0]
    pair = f"{TLS}/client-{name}"
    kept(pair, "client-ca", subject)
    write(path, kubeconfig(url, read(f"{TLS}/server-ca.crt"), read(f"{pair}.crt"), read(f"{pair}.key")), mode)


def node_bundle(node: str, address: str) -> dict[str, str]:
    """Return what a node needs to be one: certificates of its kubelet and of its kube-proxy, and the authorities."""
    kubelet = certificate("client-ca", f"/O=system:nodes/CN=system:node:{node}")
    serving = certificate("server-ca", f"/CN={node}", (node, address, "127.0.0.1"))
    proxy = certificate("client-ca", "/CN=system:kube-proxy")
    return {
        "server_ca": read(f"{TLS}/server-ca.crt"), "client_ca": read(f"{TLS}/client-ca.crt"),
        "kubelet_crt": kubelet[0], "kubelet_key": kubelet[1], "serving_crt": serving[0], "serving_key": serving[1],
        "proxy_crt": proxy[0], "proxy_key": proxy[1],
    }  # fmt: skip


