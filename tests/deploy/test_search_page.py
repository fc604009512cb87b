"""The search page in a real browser: the right answers, and no picture leaves the device where it can embed."""

import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from d3still.deploy import Embedder, GalleryIndex
from d3still.deploy.listing import GalleryImage
from d3still.deploy.service import RUNTIME_FILES, Limits, create_app
from tests.deploy.small import needs, picture

RUNTIME = Path(sys.prefix) / "onnxruntime-web/node_modules/onnxruntime-web/dist"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 60
SCRIPT = "<script>document.title='ran'</script>"
needs_runtime = pytest.mark.skipif(
    not all((RUNTIME / name).is_file() for name in RUNTIME_FILES), reason="no onnxruntime-web; make serve-demo gets it"
)
pytestmark = [
    needs("faiss", "fastapi", "uvicorn", "python_multipart", "prometheus_client", "selenium", "onnxscript"),
    pytest.mark.skipif(not (CHROMIUM and shutil.which("chromedriver")), reason="no Chromium with its driver"),
]


@pytest.fixture(scope="module")
def gallery(run, pictures):
    """The first answer to the picture of shoe-3 has a name that looks like markup."""
    images = [GalleryImage(str(path), f"shoe-{n}") for n, path in enumerate(sorted(pictures.iterdir()))]
    index = GalleryIndex.build(Embedder.from_checkpoint(run, "gallery"), images)
    first = index.search(Embedder.from_checkpoint(run, "query"), images[3].path, topk=1)[0].id
    index.images[first] = index.images[first]._replace(identity=SCRIPT)
    return index


@pytest.fixture
def serve(gallery, resizing, pictures, tmp_path):
    """``serve(runtime, …)`` starts a service and gives its address and the list of (type, body) posted to it."""
    import uvicorn

    servers = []

    def start(runtime, **limits):
        posted = []
        network = Embedder.from_checkpoint(resizing.path)
        sample = sorted(pictures.iterdir())[9]
        samples = [GalleryImage(str(sample), gallery.search(network, sample, topk=1)[0].identity)]
        app = create_app(gallery, network, resizing.path, samples, Limits(**limits), runtime)

        async def recording(scope, receive, send):
            body = bytearray()

            async def noted():
                message = await receive()
                body.extend(message.get("body", b""))
                return message

            await app(scope, noted, send)
            if scope.get("method") == "POST":
                posted.append((dict(scope["headers"])[b"content-type"].decode(), bytes(body)))

        server = uvicorn.Server(uvicorn.Config(recording, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        deadline = time.monotonic() + WAIT
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", posted

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=390,844"):
        options.add_argument(f"--{name}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(WAIT)
    yield driver
    driver.quit()


def opened(browser, address):
    browser.get(address)
    until(browser, lambda: browser.execute_script("return document.body?.dataset.ready"))
    return browser.execute_script("return document.body.dataset.ready")


def until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, 0.05).until(lambda _: condition())


def text(browser, selector):
    return [element.text for element in browser.find_elements("css selector", selector)]


def answered(browser):
    until(browser, lambda: text(browser, "#status")[0] not in ("", "searching …"))
    return text(browser, "#answers .identity")


def give(browser, path):
    browser.find_element("id", "file").send_keys(str(path))
    return answered(browser)


def expected(gallery, run, path):
    return [match.identity for match in gallery.search(Embedder.from_checkpoint(run, "query"), path, topk=12)]


@needs_runtime
def test_the_picture_stays_on_the_device(browser, serve, gallery, run, tmp_path):
    address, posted = serve(RUNTIME)
    assert opened(browser, address) == "client"
    Image.fromarray(picture(77, (90, 130))).save(tmp_path / "query.png")
    assert give(browser, tmp_path / "query.png") == expected(gallery, run, tmp_path / "query.png")
    assert posted[0][0] == "application/octet-stream" and len(posted[0][1]) == 4 * 512, "512 numbers and nothing else"
    size = (tmp_path / "query.png").stat().st_size
    assert text(browser, "#sent-bytes") == ["2048 bytes, the feature"]
    assert text(browser, "#picture-bytes") == [f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB"]
    assert "the picture did not leave it" in text(browser, "#where")[0]
    assert "16 × 12" in text(browser, "#size")[0], "the query network's own size"
    outside = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((address, "blob:", "data:")) for name in outside)


def test_the_server_embeds_where_the_browser_cannot(browser, serve, gallery, run, tmp_path):
    address, posted = serve(None, upload=30_000)
    assert opened(browser, address) == "server"
    path = sorted(Path(image.path) for image in gallery.images)[3]
    found = give(browser, path)
    assert found == expected(gallery, run, path) and found[0] == SCRIPT, "a name that looks like markup is text"
    assert browser.title != "ran" and not browser.find_elements("css selector", "#answers script")
    assert posted[0][0].startswith("multipart/form-data") and "by the server" in text(browser, "#where")[0]
    browser.find_element("css selector", "#samples button").send_keys("\n")  # by the keyboard
    until(browser, lambda: browser.find_elements("css selector", "#answers li.wrong"))
    marks = [entry.get_attribute("class") for entry in browser.find_elements("css selector", "#answers li")]
    assert marks == ["right"] + ["wrong"] * 11
    (tmp_path / "no.png").write_bytes(b"no picture")
    give(browser, tmp_path / "no.png")
    assert text(browser, "#status") == ["this file is no picture that the browser can read"]
    noise = Image.effect_noise((300, 300), 90)
    noise.save(tmp_path / "large.png")
    give(browser, tmp_path / "large.png")
    assert text(browser, "#status") == ["this file has more than 30 kB"]
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.execute_script("return window.innerWidth"), "it fits a phone"
