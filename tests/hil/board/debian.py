"""Makes the board's root file system from Debian's packages: unpacked, and set up by hand: nothing runs in it yet.

Packages' own scripts would run under emulation, for many minutes; what they would have done and a board needs is here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.hil.board.tools import run

SUITE = "bookworm"
PYTHON = "3.11"
"""The version of Python that the suite has."""

PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "dbus", "debianutils", "e2fsprogs", "findutils"),
    *("grep", "gzip", "hostname", "iproute2", "kmod", "libc-bin", "libpam-modules", "libpam-runtime", "libstdc++6"),
    *("login", "mount", "netbase", "passwd", "procps", "python3", "sed", "sudo", "systemd", "systemd-sysv", "tar"),
    *("tzdata", "udev", "util-linux", "dosfstools", "openssh-server", "cloud-init"),
    *("linux-image-cloud-arm64", "tiny-initramfs", "busybox-static"),
)
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/icons/*")
_MERGED = ("bin", "sbin", "lib")

PROMPT = "root@board:~# "
"""The prompt of the serial line, where root is logged in without a password."""

_USERS = """\
messagebus:x:100:101::/nonexistent:/usr/sbin/nologin
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
systemd-network:x:998:998:systemd Network Management:/:/usr/sbin/nologin
systemd-resolve:x:997:997:systemd Resolver:/:/usr/sbin/nologin
systemd-timesync:x:996:996:systemd Time Synchronization:/:/usr/sbin/nologin
pi:x:1000:1000:,,,:/home/pi:/bin/bash
"""
_GROUPS = """\
messagebus:x:101:
_ssh:x:102:
systemd-journal:x:999:
systemd-network:x:998:
systemd-resolve:x:997:
systemd-timesync:x:996:
gpio:x:995:
i2c:x:994:
spi:x:993:
netdev:x:992:
render:x:991:
sgx:x:990:
kvm:x:989:
input:x:988:
pi:x:1000:
"""
_PAM = {
    "common-auth": "auth required pam_unix.so nullok\n",
    "common-account": "account required pam_unix.so\n",
    "common-password": "password required pam_unix.so yescrypt\n",
    "common-session": "session required pam_unix.so\n",
    "common-session-noninteractive": "session required pam_unix.so\n",
}
_FILES = {
    "etc/hostname": "board\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tboard\n",
    "etc/machine-id": "",
    "etc/fstab": "# written where the disk is made\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/inputrc": "set enable-bracketed-paste off\n",
    "etc/systemd/network/20-wired.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    "etc/systemd/system/serial-getty@ttyAMA0.service.d/login.conf": (
        "[Service]\nExecStart=\n"
        "ExecStart=-/sbin/agetty --autologin root --noclear --nohostname --noissue --keep-baud 115200 %I dumb\n"
    ),
    "etc/sudoers.d/010_pi-nopasswd": "pi ALL=(ALL) NOPASSWD: ALL\n",
    "root/.profile": ". /root/.bashrc\n",
    "root/.bashrc": f"PS1='{PROMPT}'\nstty columns 500\n",
    "root/.hushlogin": "",
}
_WANTED = {
    "multi-user.target.wants/systemd-networkd.service": "systemd-networkd.service",
    "network-online.target.wants/systemd-networkd-wait-online.service": "systemd-networkd-wait-online.service",
    "default.target": "multi-user.target",
}
_MASKED = (
    *("systemd-firstboot.service", "systemd-pstore.service", "systemd-binfmt.service", "apt-daily.timer"),
    *("apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer"),
    *("getty@tty1.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
)


def fetch_debian(archive: Path) -> None:
    """Write the unpacked packages as a tar file; takes a network and about half a minute."""
    partial = archive.with_suffix(".partial.tar")
    run(
        [
            *(
                "mmdebstrap",
                "--mode=root",
                "--variant=extract",
                "--architectures=arm64",
                "--skip=check/qemu",
                "--quiet",
            ),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
            *(f"--include={','.join(PACKAGES)}", SUITE, partial, "http://deb.debian.org/debian"),
        ],
        timeout_s=1800,
    )
    partial.replace(archive)


def unpack_debian(archive: Path, root: Path) -> None:
    """Unpack it into an empty folder, and do what the packages' scripts would have done."""
    root.mkdir()
    run(["tar", "-xpf", archive, "--numeric-owner", "-C", root])
    _merge_usr(root)
    _write_accounts(root)
    for name, text in _PAM.items():
        (root / "etc/pam.d" / name).write_text(text)
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    units = root / "etc/systemd/system"
    for name, unit in _WANTED.items():
        link(units / name, f"/lib/systemd/system/{unit}")
    for name in _MASKED:
        link(units / name, "/dev/null")
    shutil.copy(root / "usr/share/openssh/sshd_config", root / "etc/ssh/sshd_config")
    link(root / "etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
    link(root / "etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
    link(root / "usr/bin/awk", "/usr/bin/mawk")


def link(path: Path, target: str) -> None:
    """Make a symbolic link; what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _merge_usr(root: Path) -> None:
    """Move /bin, /sbin and /lib into /usr, as every Debian from 12 on has them."""
    for name in _MERGED:
        old, new = root / name, root / "usr" / name
        if old.is_symlink():
            continue
        new.mkdir(exist_ok=True)
        run(["cp", "-a", "--remove-destination", f"{old}/.", new])
        shutil.rmtree(old)
        old.symlink_to(f"usr/{name}")


def _write_accounts(root: Path) -> None:
    """Write the accounts of the packages, and ``pi``; root has no password, and logs in on the serial line alone."""
    masters = root / "usr/share/base-passwd"
    (root / "etc/passwd").write_text((masters / "passwd.master").read_text().replace(":*:", ":x:") + _USERS)
    (root / "etc/group").write_text((masters / "group.master").read_text().replace(":*:", ":x:") + _GROUPS)
    names = [line.split(":")[0] for line in (root / "etc/passwd").read_text().splitlines()]
    shadow = root / "etc/shadow"
    shadow.write_text("".join(f"{name}:{'' if name == 'root' else '*'}:19000:0:99999:7:::\n" for name in names))
    shadow.chmod(0o640)
    shutil.chown(shadow, 0, 42)
    home = root / "home/pi"
    home.mkdir(mode=0o755, exist_ok=True)
    shutil.chown(home, 1000, 1000)
