"""A Ceph RadosGW of a test module's own, over a monitor and one OSD in memory: another real S3 server, on loopback."""

import shutil
import subprocess
import uuid
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from urllib.request import Request, urlopen

import pytest

from helpers.seaweed import BUCKET, KEY, PATIENCE, READER, SECRET, START_SECONDS, Server, free_ports, until_it_answers
from moe_core.store.bucket import import_obstore

PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph")
CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
admin socket =
log file = {folder}/$name.log
crash dir = {folder}
run dir = {folder}
mon data = {folder}/mon
mon data avail warn = 0
mon data avail crit = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon warn on pool no redundancy = false
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw frontends = beast endpoint=127.0.0.1:{http}
rgw data = {folder}
rgw thread pool size = 64
debug rgw = 0

[mon]
public addrv = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]

[osd]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
"""


@contextmanager
def serving(folder):
    """Starts a server whose files lie in `folder`, with one bucket; ends it with the block, and removes the folder."""
    skip_without_it()
    fsid, (v1, v2, http, _) = str(uuid.uuid4()), sorted(free_ports())
    conf = folder / "ceph.conf"
    conf.write_text(CONF.format(fsid=fsid, v1=v1, v2=v2, http=http, folder=folder))

    def command(program, *arguments):
        return [program, "-c", str(conf), *arguments]

    def ask(program, *arguments):
        done = subprocess.run(command(program, *arguments), capture_output=True, text=True, timeout=2 * START_SECONDS)
        assert done.returncode == 0, done.stderr[-2000:]

    with ExitStack() as ends:
        ends.callback(shutil.rmtree, folder)

        def start(program, *arguments):
            with open(folder / f"{program}.out", "wb") as output:
                pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
                process = subprocess.Popen(command(program, "-f", *arguments), cwd=folder, **pipes)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process

        ask("ceph-mon", "-i", "a", "--mkfs", "--fsid", fsid)
        start("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        ask("ceph", "--connect-timeout", str(START_SECONDS), "osd", "new", osd)
        (folder / "osd").mkdir()
        ask("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        process = start("radosgw", "-n", "client.rgw")
        server = Server(f"http://127.0.0.1:{http}", process, folder / "client.rgw.log")
        until_it_answers(server)
        keys = ["--key-type=s3", f"--secret-key={SECRET}"]
        ask("radosgw-admin", "user", "create", f"--uid={KEY}", "--display-name=x", f"--access-key={KEY}", *keys)
        subuser = [f"--uid={KEY}", f"--subuser={KEY}:{READER}", "--access=read", f"--access-key={READER}"]
        ask("radosgw-admin", "subuser", "create", *subuser, *keys)
        make_bucket(server)
        yield server


def skip_without_it():
    pytest.importorskip("obstore", reason="pip install 'hardmoe[s3]'")
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        install = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
        pytest.skip(f"no Ceph RadosGW here ({', '.join(missing)}): {install}")


def make_bucket(server):
    obstore = import_obstore()
    store = obstore.store.from_url(f"s3://{BUCKET}", config=server.options(), client_options={"allow_http": True})
    url = obstore.sign(store, "PUT", "", timedelta(minutes=5))
    urlopen(Request(url, method="PUT"), timeout=PATIENCE).close()
