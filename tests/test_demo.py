"""`commands.demo`: the page in a real browser, and what the server accepts and refuses."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from commands import classify, demo
from face_attributes.faces.boxes import BOX
from tests.conftest import ROOT, Run, save_photo
from tests.small import png_header, restore_torch_settings, two_faces

pytestmark = pytest.mark.slow

MAX_BYTES = 2_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's working folder."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def server(trained: Path, folder: Path) -> Iterator[str]:
    """The address of a demo with small networks, such as 127.0.0.1:8000; Ctrl-C stops it."""
    options = ["--networks", str(trained), "--port", "0", "--max-mb", str(MAX_BYTES / 1e6)]
    process = subprocess.Popen(
        [sys.executable, "-m", "commands.demo", *options, "--precision", "fp32"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://(127\.0\.0\.1:\d+) ", line)
    assert address, line
    yield address[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture
def home(server: str) -> str:
    return f"http://{server}/"


@pytest.fixture
def demo_page(page: Page, home: str) -> Page:
    """The page; the test fails if it sends a request to anything but its server."""
    page.goto(home)
    return page


def post(
    server: str, body: Any, path: str = "/classify", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Send a photo: the status and the answer."""
    connection = http.client.HTTPConnection(server, timeout=60)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if text.startswith("{") else {"error": text}


def displayed_percentages(page: Page) -> dict[str, float]:
    """The percentage of each value of the first face, by the value's name."""
    rows = page.locator("#faces article").first.locator("tr")
    return {
        row.locator("th").inner_text().split(" ✓")[0]: float(
            row.locator("td.number").inner_text().rstrip("%")
        )
        for row in rows.all()
    }


def test_an_answer_equals_that_of_classify(
    server: str, trained: Path, portraits: list[Path], run: Run
) -> None:
    status, answer = post(server, portraits[0].read_bytes())
    options = ["--networks", trained, "--precision", "fp32"]
    with restore_torch_settings():
        run(classify.main, portraits[0], *options, "--json", "rows.json")
    (expected,), (row,) = json.loads(Path("rows.json").read_text()), answer["rows"]
    assert (status, answer["width"], answer["height"]) == (200, 384, 512)
    assert row["classes"] == pytest.approx(expected["classes"], abs=1e-5)
    for key in ("face", "mask", "gender", "age", "class", *BOX, "way", "problem"):
        assert row[key] == expected[key]


def test_a_chosen_photo_is_displayed_with_its_box_and_probabilities(
    demo_page: Page, server: str, portraits: list[Path]
) -> None:
    demo_page.locator("#file").set_input_files(portraits[0])
    demo_page.locator("#result").wait_for()
    _, answer = post(server, portraits[0].read_bytes())
    (row,) = answer["rows"]
    words = f"mask {row['mask']}, {row['gender']}, {row['age']}"
    assert demo_page.locator("h2").inner_text() == words.capitalize()
    assert demo_page.get_by_role("status").inner_text() == f"1 face: {words}"
    expected = {
        name: 100 * probability
        for probabilities in row["attributes"].values()
        for name, probability in probabilities.items()
    }
    assert displayed_percentages(demo_page) == pytest.approx(expected, abs=0.51)
    assert demo_page.locator("tr.likeliest").count() == 3
    box = demo_page.locator("svg rect").first.evaluate(
        "box => ['x', 'y', 'width', 'height'].map(name => +box.getAttribute(name))"
    )
    assert box == [row["left"], row["top"], row["width"], row["height"]]
    assert demo_page.locator("svg").get_attribute("viewBox") == "0 0 384 512"
    drawing, photo = (demo_page.locator(name).bounding_box() for name in ("figure svg", "#photo"))
    assert drawing == photo
    assert photo and photo["width"] > 200


def test_a_dropped_photo_of_two_people_is_displayed_with_both(
    demo_page: Page, portraits: list[Path], tmp_path: Path
) -> None:
    two_faces(portraits, tmp_path / "two.png")
    transfer(demo_page, tmp_path / "two.png", "drop")
    demo_page.locator("#result").wait_for()
    assert demo_page.locator("#faces article").count() == 2
    assert demo_page.locator("svg text").all_text_contents() == ["1", "2"]


def test_a_pasted_photo_without_a_face_is_classified_on_request(
    demo_page: Page, tmp_path: Path
) -> None:
    save_photo(tmp_path / "nobody.png")
    transfer(demo_page, tmp_path / "nobody.png", "paste")
    demo_page.get_by_role("heading", name="No face was found").wait_for()
    assert demo_page.get_by_role("status").inner_text() == "No face found."
    demo_page.get_by_label("Also classify photos without a face").check()
    demo_page.get_by_text("cropped where faces usually are").wait_for()
    assert demo_page.locator("svg rect.guessed").count() == 1
    assert len(displayed_percentages(demo_page)) == 8


def transfer(page: Page, path: Path, event: str) -> None:
    """Drop or paste a file (event: "drop" or "paste")."""
    page.evaluate(
        """async ([data, name, event]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            document.getElementById("drop").dispatchEvent(event === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: transfer })
                : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
        }""",
        [b64encode(path.read_bytes()).decode(), path.name, event],
    )


def test_a_photo_can_be_taken_with_the_camera(
    browser: Browser, server: str, portraits: list[Path]
) -> None:
    """The camera's picture is replaced by a drawn portrait."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{server}/")
    page.evaluate(
        """async (data) => {
            const image = new Image();
            image.src = `data:image/jpeg;base64,${data}`;
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [384, 512];
            setInterval(() => canvas.getContext("2d").drawImage(image, 0, 0), 50);
            navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(20);
        }""",
        b64encode(portraits[0].read_bytes()).decode(),
    )
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#video")).to_have_js_property("videoWidth", 384)  # polls without eval
    assert page.get_by_role("button", name="Use the camera").is_disabled(), (
        "a second click must not start it again"
    )
    page.get_by_role("button", name="Take the photo").click()
    page.locator("#result").wait_for()
    assert page.locator("svg rect.inner").count() == 1
    assert page.locator("#camera").is_hidden()
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = "
        "async () => { throw new DOMException('', 'NotAllowedError'); }; }"
    )
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_text("The browser may not use the camera").wait_for()
    context.close()


def test_the_page_says_why_a_file_is_refused(browser: Browser, server: str, tmp_path: Path) -> None:
    """Without the fixture `page`, which fails on the refusal in the browser's console."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{server}/")
    (tmp_path / "text.png").write_text("not a photo")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    page.get_by_text("The photo is not a JPEG, PNG,").wait_for()
    (tmp_path / "large.jpg").write_bytes(bytes(MAX_BYTES + 1))
    page.locator("#file").set_input_files(tmp_path / "large.jpg")
    page.get_by_text("The photo is larger than 2 MB.").wait_for()
    assert page.locator("#result").is_hidden()
    context.close()


def test_the_keyboard_suffices_and_every_control_has_a_name(
    demo_page: Page, portraits: list[Path]
) -> None:
    with demo_page.expect_file_chooser() as chooser:
        demo_page.get_by_role("button", name="Choose a photo").press("Enter")
    chooser.value.set_files(portraits[0])
    demo_page.locator("#result").wait_for()
    names = demo_page.locator("button, input, img, section, video").evaluate_all(
        "nodes => nodes.map(n => n.ariaLabel || n.alt || n.labels?.[0]?.textContent "
        "|| n.textContent.trim())"
    )
    assert all(names)
    assert demo_page.locator("table caption").count() == 3


def test_the_page_fits_a_phone_and_has_a_dark_theme(browser: Browser, server: str) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme=scheme)
        page = context.new_page()
        page.goto(f"http://{server}/")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert backgrounds[0] != backgrounds[1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty"),
        (b"not a photo", "is not a JPEG, PNG, WEBP, GIF or AVIF"),
        (b"\xff\xd8\xff\xe0 truncated", "cannot be decoded (Truncated File Read)"),
        (png_header(10_000, 10_000), "has 10000 x 10000 pixels, more than 50000000"),
    ],
    ids=["empty", "text", "truncated", "too many pixels"],
)
def test_a_bad_photo_is_refused_with_the_reason(server: str, body: bytes, reason: str) -> None:
    assert post(server, body) == (422, {"error": f"the photo {reason}"})


def test_a_large_upload_is_refused_with_or_without_a_stated_size(server: str) -> None:
    too_large = (413, {"error": "the photo is larger than 2 MB"})
    assert post(server, bytes(MAX_BYTES + 1)) == too_large
    assert post(server, iter([bytes(1_000_000)] * 3)) == too_large
    assert post(server, bytes(MAX_BYTES))[0] == 422


def test_two_uploads_at_once_each_get_their_own_answer(server: str, portraits: list[Path]) -> None:
    bodies = [portrait.read_bytes() for portrait in portraits[:2]]
    alone = [post(server, body) for body in bodies]
    assert alone[0] != alone[1], "photos must differ for the test to mean anything"
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda body: post(server, body), bodies * 4))
    assert together == alone * 4


def test_an_interrupted_upload_does_not_disturb_the_server(
    server: str, portraits: list[Path]
) -> None:
    """The fixture `server` fails if the server prints anything."""
    host, port = server.split(":")
    with socket.create_connection((host, int(port))) as upload:
        head = f"POST /classify HTTP/1.1\r\nHost: {server}\r\nContent-Length: 1000\r\n\r\n"
        upload.sendall(head.encode() + b"\xff\xd8")
    assert post(server, portraits[0].read_bytes())[0] == 200


def test_only_the_servers_own_page_may_send_photos(server: str, portraits: list[Path]) -> None:
    body = portraits[0].read_bytes()
    assert post(server, body, Origin="http://evil.example")[0] == 403
    assert post(server, body, Origin="null")[0] == 403
    assert post(server, body, Host="evil.example")[0] == 400  # a foreign name that resolves here
    assert post(server, body, Origin=f"http://{server}")[0] == 200


def test_no_photo_is_stored(server: str, folder: Path, portraits: list[Path]) -> None:
    before = set(folder.rglob("*"))
    assert post(server, portraits[0].read_bytes())[0] == 200
    assert set(folder.rglob("*")) == before


def test_a_missing_requirement_is_one_line_with_the_remedy(
    run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network = run(demo.main, "--networks", "nowhere", "--port", 0, code=1)
    assert no_network.stderr.startswith("error: nowhere contains no trained network")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        in_use = run(demo.main, "--networks", trained, "--port", port, code=1)
    assert in_use.stderr == (f"error: --port {port}: Address already in use: choose another port\n")
    monkeypatch.setattr(demo, "DEMO_PACKAGES", ("starlette", "not_installed"))
    not_installed = run(demo.main, code=1)
    assert not_installed.stderr == (
        "error: the demo needs starlette and not_installed: run `python -m pip install "
        "-r requirements-demo.txt`\n"
    )
