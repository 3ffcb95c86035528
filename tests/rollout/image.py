"""The image of a host: Debian with systemd and sshd, built with debootstrap from this machine's own mirror."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from rollout.machine import BUILD, Failed, output_of, run, say

__all__ = ["DEPLOY_USER", "host_image"]

DEPLOY_USER: Final = "deploy"
"""Who Ansible logs in as; sudo makes it root, as on a usual host."""

_INCLUDE: Final = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-venv",
    "ca-certificates",
    "iproute2",
    "procps",
    "sudo",
)
_NAME: Final = "localhost/sage-rollout-host"
_SET_UP: Final = f"""
set -eu
rm -f /etc/ssh/ssh_host_*_key* /etc/machine-id /var/lib/dbus/machine-id
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*
touch /etc/machine-id
useradd --create-home --shell /bin/bash {DEPLOY_USER}
echo '{DEPLOY_USER} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{DEPLOY_USER}
chmod 0440 /etc/sudoers.d/{DEPLOY_USER}
mkdir -p /etc/systemd/system/ssh.service.d
printf '[Service]\\nExecStartPre=\\nExecStartPre=/usr/bin/ssh-keygen -A\\nExecStartPre=/usr/sbin/sshd -t\\n' \\
  >/etc/systemd/system/ssh.service.d/host-keys.conf
systemctl enable ssh.service
systemctl mask systemd-resolved.service systemd-networkd.service getty.target
"""
_BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def host_image(environ: dict[str, str]) -> str:
    """Return the name of the image; build it where podman does not have it yet. Raises Failed."""
    suite, mirror = _suite_and_mirror()
    bundle = _BUNDLE.read_bytes() if _BUNDLE.exists() else b""
    content = "\0".join([suite, *_INCLUDE, _SET_UP]).encode() + bundle
    name = f"{_NAME}:{suite}-{hashlib.sha256(content).hexdigest()[:12]}"
    found = subprocess.run(
        ["podman", "image", "exists", name], env=environ, stdin=subprocess.DEVNULL, check=False
    )
    if found.returncode == 0:
        say(f"image {name} is there")
        return name
    for other in output_of(
        ["podman", "images", "--format", "{{.Repository}}:{{.Tag}}", _NAME], environ=environ
    ).split():
        subprocess.run(["podman", "rmi", other], env=environ, capture_output=True, check=False)
    say(f"building image {name} from {mirror} (about a minute)")
    BUILD.mkdir(parents=True, exist_ok=True)
    # Not a private folder: the root of the file system must be open to all users of the host.
    with tempfile.TemporaryDirectory(prefix="root-", dir=BUILD) as folder:
        root = Path(folder) / "root"
        root.mkdir(mode=0o755)
        run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(_INCLUDE)}", suite, root, mirror],
            BUILD / "logs" / "debootstrap.log",
            environ={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        if bundle:
            shutil.copyfile(_BUNDLE, root / _BUNDLE.relative_to("/"))
        run(["chroot", root, "/bin/sh", "-c", _SET_UP], BUILD / "logs" / "image-set-up.log")
        with tempfile.NamedTemporaryFile(suffix=".tar", dir=BUILD) as archive:
            run(["tar", "-C", root, "-cf", archive.name, "."], BUILD / "logs" / "image-tar.log")
            run(
                ["podman", "import", archive.name, name], BUILD / "logs" / "image-import.log", environ=environ
            )
    return name


def _suite_and_mirror() -> tuple[str, str]:
    """Return this machine's release and where its apt takes it from."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text("utf-8").splitlines() if "=" in line
    )
    suite = release.get("VERSION_CODENAME", "").strip('"')
    targets = output_of(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(SUITE) $(RELEASE) $(COMPONENT) $(REPO_URI)"]
    )
    for line in targets.splitlines():
        *names, component, uri = line.split(" ")
        if component == "main" and suite in names and uri.startswith(("http://", "https://")):
            return suite, uri
    raise Failed(f"apt's configuration names no mirror of {suite or 'this release'}")
