"""Serve a page on this machine that classifies one photo at a time.

    python -m pip install -r requirements-demo.txt
    python -m commands.demo

Open http://127.0.0.1:8000 and drop, choose or paste a photo, or take one with the camera. Photos
are not stored and do not leave the machine; other machines cannot reach the page. Ctrl-C stops it.
"""

import importlib.util
import socket
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer

from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.inference.ensemble import Ensemble, read_networks
from face_attributes.inference.recognition import classify, examine, find_networks, is_readable
from face_attributes.networks.device import prepare_hardware
from face_attributes.pages.rendering import template
from face_attributes.params import Device, Precision

DEMO_PACKAGES = ("starlette", "uvicorn")


def check_demo_packages() -> None:
    """Check that the demo's own packages are installed.

    Raises:
        UserError: if one is missing; with the command that installs it.
    """
    if not all(map(importlib.util.find_spec, DEMO_PACKAGES)):
        raise UserError(
            f"the demo needs {' and '.join(DEMO_PACKAGES)}: run "
            "`python -m pip install -r requirements-demo.txt`"
        )


def listen(port: int) -> socket.socket:
    """Open a socket on 127.0.0.1; from now on a browser can connect and wait.

    Raises:
        UserError: if the port is in use or not permitted.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(f"--port {port}: {error.strerror}: choose another port") from None
    return listener


@user_command
def main(
    networks: Annotated[
        Path, typer.Option(help="Folder with fold0/network.safetensors, ...")
    ] = Path("data/train"),
    fold: Annotated[int | None, typer.Option(help="Use the network of one fold only")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port")] = 8000,
    max_mb: Annotated[float, typer.Option(min=0.001, max=1e4, help="Refuse larger uploads")] = 25.0,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Reject photos with more pixels, without decoding them")
    ] = 50_000_000,
    device: Annotated[Device, typer.Option(help="auto: a GPU if there is one")] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="auto: fp16 or bf16 where the hardware is fast in it")
    ] = "auto",
) -> None:
    """Serve a page on 127.0.0.1 that classifies the faces in a photo."""
    check_demo_packages()
    import uvicorn

    from commands.serving import RefusedError, demo_app

    listener = listen(port)
    hardware = prepare_hardware(device, precision, "--device")
    members, recipes = read_networks(list(find_networks(networks, fold).values()), hardware)
    ensemble, recipe = Ensemble(members, recipes), recipes[0]

    def answer(photo: BytesIO, fallback: bool) -> dict[str, Any]:
        examined = examine("", photo, recipe, fallback, max_pixels)
        (rows,) = classify([examined], ensemble, recipe, hardware)
        if not is_readable(rows[0]):
            raise RefusedError(f"the photo {examined.problem}")
        return {"width": examined.width, "height": examined.height, "rows": rows}

    max_bytes = round(max_mb * 1e6)
    content = {"networks": len(members), "max_bytes": max_bytes}
    app = demo_app(template("demo.html"), content, answer, max_bytes)
    host, bound = listener.getsockname()
    print(f"demo: open http://{host}:{bound} in a browser; Ctrl-C stops it", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", limit_concurrency=32, timeout_graceful_shutdown=3
    )
    with suppress(KeyboardInterrupt):  # the way to stop it
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
