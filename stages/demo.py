"""Demo: a page on this machine on which one photo at a time is classified.

    python -m pip install -r requirements-demo.txt
    python -m stages.demo

Open http://127.0.0.1:8000 and drop a photo, choose or paste one, or take one with the camera.
Nothing leaves the machine and nothing is stored; nobody else can reach the page. Ctrl-C ends it.
"""

import importlib.util
import socket
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stages.classifying import classify, find_networks, look, was_read
from stages.command import stage_command
from stages.errors import UserError
from stages.learning.device import be_deterministic, choose_hardware, keep_memory
from stages.learning.ensemble import Ensemble, read_networks
from stages.pages.rendering import template
from stages.params import Device

EXTRAS = ("starlette", "uvicorn")


def check_installed() -> None:
    """The demo's own packages must be there.

    Raises:
        UserError: naming the command that installs them.
    """
    if not all(map(importlib.util.find_spec, EXTRAS)):
        raise UserError(
            "the demo needs two packages more: python -m pip install -r requirements-demo.txt"
        )


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1, at which a browser may wait from now on.

    Raises:
        UserError: if the port is in use, or is not to be had.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(f"port {port}: {error.strerror}: name another with --port") from None
    return listening


@stage_command
def main(
    networks: Annotated[
        Path, typer.Option(help="Folder with fold0/network.safetensors, ...")
    ] = Path("data/train"),
    fold: Annotated[int | None, typer.Option(help="Ask the network of one fold alone")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    max_mb: Annotated[
        float, typer.Option(min=0.001, max=1e4, help="A larger upload is refused")
    ] = 25.0,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="A larger photo is not decoded")
    ] = 50_000_000,
    device: Annotated[Device, typer.Option()] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option()] = "auto",
) -> None:
    """Serve a page on 127.0.0.1 that classifies the faces in a photo."""
    check_installed()
    import uvicorn

    from stages.serving import RefusedError, demo_app

    listening = listen(port)
    be_deterministic()
    keep_memory()
    hardware = choose_hardware(device, precision, "--device")
    asked, recipe = read_networks(list(find_networks(networks, fold).values()), hardware)
    ensemble = Ensemble(asked, recipe)

    def answer(photo: BytesIO, fallback: bool) -> dict[str, Any]:
        seen = look("", photo, recipe, fallback, max_pixels)
        (rows,) = classify([seen], ensemble, recipe, hardware)
        if not was_read(rows[0]):
            raise RefusedError(f"the photo {seen.problem}")
        return {"width": seen.width, "height": seen.height, "rows": rows}

    max_bytes = round(max_mb * 1e6)
    content = {"networks": len(asked), "max_bytes": max_bytes}
    app = demo_app(template("demo.html"), content, answer, max_bytes)
    host, bound = listening.getsockname()
    print(f"demo: open http://{host}:{bound} in a browser; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", limit_concurrency=32, timeout_graceful_shutdown=3
    )
    with suppress(KeyboardInterrupt):  # as it is told to be ended
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
