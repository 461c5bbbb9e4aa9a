"""Two machines within this one, for tests of ssh and of Slurm: each has a name, a network, processes and an
sshd of its own.

They are namespaces (namespaces(7)) that live as long as the process that holds each; that one ends with the
test, even if the test is killed. What they change of /etc and /run is mounted for them alone. Files are those
of this machine, as on a cluster with a shared file system.
"""

import os
import pwd
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO, environment

NAMES = ("first", "second")
NETWORK = "10.213.48"
SSHD = "/usr/sbin/sshd"
PROGRAMS = ("unshare", "nsenter", "ip", "mount", "ssh", "ssh-keygen", SSHD)

INIT = """
set -e
hostname {name}
mount -t tmpfs none /run
mkdir -p /run/sshd /run/munge
mount --bind {directory}/hosts-{name} /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount --bind {directory}/ssh_config /etc/ssh/ssh_config
ip link set lo up
ip link add docker0 type veth peer name docker1
ip link set docker1 up
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
{sshd} -f {directory}/sshd_config -E {directory}/sshd-{name}.log
echo ready
while read -r _; do :; done
"""
"""A machine's first process. It ends when its standard input does, and all others of the machine with it."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of the machines."""

    name: str
    pid: int
    """its first process, as numbered outside"""

    def words(self, command: Sequence[str], directory: Path) -> list[str]:
        """The command that runs another one there."""
        inside = f"cd {shlex.quote(str(directory))} && exec {shlex.join(command)}"
        return ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", "--pid", "sh", "-c", inside]

    def run(self, *command: str, directory: Path = Path("/"), check: bool = True) -> str:
        """Run a command there; returns what it wrote."""
        done = subprocess.run(
            self.words(command, directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0 or not check, (
            f"{command} ended with {done.returncode} on {self.name}\n{done.stdout}"
        )
        return done.stdout

    def start(
        self, command: Sequence[str], directory: Path, said: Path, env: Mapping[str, str] | None = None
    ) -> "Started":
        """Start a command there that writes into a file."""
        with said.open("w") as file:
            process = subprocess.Popen(
                self.words(command, directory),
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        return Started(process=process, said=said)

    def processes(self, sign: str = "") -> list[int]:
        """Those there, by their numbers outside, whose command line or environment has `sign` in it. A
        zombie is none.
        """
        if not alive(self.pid):
            return []  # it takes all others with it
        home, found = _namespace(self.pid), []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or entry.name == str(self.pid):
                continue
            with suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if _namespace(int(entry.name)) == home and sign.encode() in text and alive(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def ranks(self) -> list[int]:
        """The processes of a training there."""
        return self.processes("LOCAL_WORLD_SIZE=")


@dataclass(frozen=True, kw_only=True)
class Started:
    """A command that runs on a machine."""

    process: "subprocess.Popen[bytes]"
    said: Path

    def told(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Send it to the command itself; nsenter waits for that, and would not pass it on."""
        (child,) = (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            .read_text(encoding="ascii")
            .split()
        )
        os.kill(int(child), number)

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout=timeout)


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def alive(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()[0]
            != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def missing(*more: str) -> str:
    """Why there can be no such machines here; empty if there can."""
    if lacking := [name for name in (*PROGRAMS, *more) if not shutil.which(name)]:
        return f"needs {', '.join(lacking)}"
    if os.geteuid():
        return "needs root, for network namespaces"
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else ""


@contextmanager
def machines(directory: Path) -> Iterator[tuple[Host, Host]]:
    """The two, joined by a cable. `directory` is for their settings and a key that opens both, to each
    other.
    """
    (directory / "empty").mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key"], check=True)
    user = pwd.getpwuid(os.geteuid()).pw_name
    address = {name: f"{NETWORK}.{number}" for number, name in enumerate(NAMES, 1)}
    for name in NAMES:  # as Debian writes it: a machine's own name is a loopback address, for itself alone
        known = {"localhost": "127.0.0.1", "absent": f"{NETWORK}.9", **address, name: "127.0.1.1"}
        (directory / f"hosts-{name}").write_text(
            "".join(f"{where} {what}\n" for what, where in known.items()), encoding="utf-8"
        )
    (directory / "ssh_config").write_text(
        f"Host *\n  IdentityFile {directory}/key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n "
        " UserKnownHostsFile /dev/null\n  LogLevel ERROR\n",
        encoding="utf-8",
    )
    (directory / "sshd_config").write_text(
        f"HostKey {directory}/key\nAuthorizedKeysFile {directory}/key.pub\nAllowUsers "
        f"{user}\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM "
        "no\nStrictModes no\nPidFile none\n",
        encoding="utf-8",
    )
    with ExitStack() as stack:
        hosts = tuple(stack.enter_context(_machine(name, directory)) for name in NAMES)
        first, second = hosts
        cable = [
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            str(first.pid),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(second.pid),
        ]
        subprocess.run(cable, check=True, capture_output=True)
        for host in hosts:
            host.run("ip", "address", "add", f"{address[host.name]}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
        yield first, second


@contextmanager
def _machine(name: str, directory: Path) -> Iterator[Host]:
    script = INIT.format(name=name, directory=shlex.quote(str(directory)), sshd=SSHD)
    words = [
        "unshare",
        "--net",
        "--uts",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-c",
        script,
    ]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            said = holder.stdout.readline()
            assert said == "ready\n", said + holder.stdout.read()
            (child,) = (
                Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text(encoding="ascii").split()
            )
            yield Host(name=name, pid=int(child))
        finally:
            holder.kill()  # and by --kill-child, all that is there
            holder.stdin.close()


def until(seconds: float, holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.05)


SLURM = (
    "munged",
    "slurmctld",
    "slurmd",
    "srun",
    "salloc",
    "sbatch",
    "scontrol",
    "scancel",
    "sinfo",
    "squeue",
)
SLURM_CONF = """
ClusterName=test
SlurmctldHost=first({network}.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
KillWait=30
GresTypes=gpu
NodeName=first NodeAddr={network}.1 CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=second NodeAddr={network}.2 CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Slurm on the two machines; its commands run on the first."""

    first: Host
    conf: Path

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str, check: bool = True) -> str:
        return self.first.run("env", f"SLURM_CONF={self.conf}", *command, check=check).strip()

    def start(
        self, command: Sequence[str], directory: Path, said: Path, env: Mapping[str, str] | None = None
    ) -> Started:
        return self.first.start(command, directory, said, {**(env or {}), **self.env})

    def submit(self, script: Path, said: Path, env: Mapping[str, str]) -> str:
        """Hand a script to sbatch, which passes the environment on; returns the job's number."""
        words = [
            *(f"{name}={value}" for name, value in {**env, **self.env, "PYTHONPATH": str(REPO)}.items()),
            "sbatch",
            "--parsable",
            "-N2",
        ]
        return self.first.run(
            "env", *words, f"--chdir={script.parent}", f"--output={said}", str(script)
        ).strip()


def cluster(pair: tuple[Host, Host], directory: Path) -> Cluster:
    """Make a cluster of Slurm's of the two, which the first one controls. Each has two GPUs, as far as
    Slurm knows.
    """
    (directory / "munge.key").write_bytes(os.urandom(128))
    (directory / "munge.key").chmod(0o400)
    (directory / "slurm.conf").write_text(
        SLURM_CONF.format(directory=directory, network=NETWORK), encoding="utf-8"
    )
    (directory / "gres.conf").write_text(
        "Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n", encoding="utf-8"
    )
    made = Cluster(first=pair[0], conf=directory / "slurm.conf")
    for host in pair:
        host.run(
            "munged",
            "--force",
            f"--key-file={directory}/munge.key",
            "--seed-file=/run/munge/seed",
            "--log-file=/run/munge/log",
            "--pid-file=/run/munge/pid",
            "--socket=/run/munge/munge.socket.2",
        )
    made.run("slurmctld")
    for host in pair:
        host.run("env", f"SLURM_CONF={made.conf}", "slurmd", "-N", host.name)
    until(
        30,
        lambda: made.run("sinfo", "--noheader", "--format=%T %D", check=False) == "idle 2",
        "the nodes do not come up",
    )
    return made
