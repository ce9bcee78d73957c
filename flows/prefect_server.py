"""Prefect's server for one night by hand, which ends with that night however it ends.

Prefect would start one itself, and leave it behind if the night is killed. This one lives for as long as the night
holds its standard input, and the kernel lets go of that for us. `python -m flows.prefect_server FD` is the server.
"""

import atexit
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 15.0
START_S = 120.0  # the first start writes the database; a busy machine takes its time


def start_server() -> "subprocess.Popen[bytes] | None":
    """Sets PREFECT_API_URL, so call it before Prefect is imported. None where that names a server already."""
    if os.environ.get("PREFECT_API_URL"):
        return None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        handle = listening.fileno()
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.prefect_server", str(handle)],
            env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
            stdin=subprocess.PIPE,
            pass_fds=[handle],
            start_new_session=True,  # Ctrl-C is for the night alone
        )
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    # Registered before Prefect is imported, so called after Prefect has sent the last of the night to its server.
    atexit.register(_end, server)
    return server


def wait_for(server: "subprocess.Popen[bytes] | None") -> None:
    """Its port has been open from the start, so the question waits there until it can be answered."""
    if server is None:
        _expect_an_answer(os.environ["PREFECT_API_URL"])
        return
    port = int(os.environ["PREFECT_API_URL"].rpartition(":")[2].partition("/")[0])
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    from tasks.errors import ServerNotStarted

    try:
        asking.request("GET", "/api/health")
        asking.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        how = "did not answer" if server.poll() is None else f"ended with code {server.returncode}"
        raise ServerNotStarted(
            f"Prefect's server {how} within {START_S:.0f} s of its start. Its database is in "
            f"{os.environ['PREFECT_HOME']}; if that is damaged, move it away and run again. "
            "Nothing was started or published."
        ) from error
    finally:
        asking.close()


def _expect_an_answer(url: str) -> None:
    """Any answer will do, a refusal too: whether we may do something there is for Prefect to find out.

    Raises PrefectUnreachable where nobody answers. What Prefect alone has certificates for is left to it.
    """
    from tasks.errors import PrefectUnreachable

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_S):
            return
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return
        shown = urllib.parse.urlsplit(url)._replace(query="", fragment="")
        place = shown._replace(netloc=shown.netloc.rpartition("@")[2]).geturl()  # without a password
        raise PrefectUnreachable(
            f"PREFECT_API_URL names a Prefect server at {place}, and nothing answers there "
            f"({getattr(error, 'reason', error)}). Nothing was started or published. Start that server, correct the "
            "variable, or unset it: a night by hand then brings a server of its own."
        ) from None


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.kill()
    server.wait()


def _serve(handle: int) -> None:
    """What `start_server` starts. Nothing is ever written to its standard input: the end of it is the end."""

    def end_with_the_night() -> None:
        os.read(0, 1)
        os._exit(0)

    threading.Thread(target=end_with_the_night, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral=True, final=True), fd=handle, log_level="error", lifespan="on")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
