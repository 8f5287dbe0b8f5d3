"""Starting and stopping: signals, and the address that is told."""

import signal
import subprocess
import sys

import pytest

from debride.errors import UsageError
from debride.serve.http.run import bind, url_of
from serving import MODEL, _ready

CODE = "import signal; signal.signal(signal.SIGHUP, signal.{}); from debride.cli import main; main()"


@pytest.mark.parametrize(("first", "stops"), [("SIG_IGN", False), ("SIG_DFL", True)])
def test_a_closed_terminal_stops_the_server_unless_nohup_has_it_ignored(tmp_path, first, stops):
    log = tmp_path / "log"
    command = [sys.executable, "-c", CODE.format(first), "serve", str(MODEL), "--port", "0", "--range", "0,1"]
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written, stderr=written, cwd=tmp_path)
    try:
        served = _ready(process, log)
        process.send_signal(signal.SIGHUP)
        if stops:
            assert process.wait(30) == 0
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            assert served.get("/v2/health/ready").status == 200
            assert served.end() == 0
    finally:
        process.kill()
        process.wait()


def test_the_address_is_told_as_a_browser_takes_it():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"--host 127.0.0.1 --port {port}: "):
            bind("127.0.0.1", port)
    with bind("::1", 0) as listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
    with pytest.raises(UsageError, match="--host no such host"):
        bind("no such host", 0)
