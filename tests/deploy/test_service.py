"""The search service: its contract, its limits, and that nothing a stranger sends stops it."""

import io
import json
import os
import random
import resource
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from d3still.deploy import Embedder, GalleryIndex
from d3still.deploy.listing import GalleryImage
from d3still.deploy.service import Limits, create_app
from d3still.errors import UserError
from tests.deploy.small import needs, picture, save_run

pytestmark = needs("faiss", "fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx")
LIMITS = Limits(upload=60_000, pixels=100_000, topk=20)


@pytest.fixture(scope="module")
def gallery(run, pictures):
    """40 images of four identities and three cameras."""
    paths = sorted(pictures.iterdir())
    images = [GalleryImage(str(path), f"shoe-{n % 4}", None, str(n % 3)) for n, path in enumerate(paths)]
    return GalleryIndex.build(Embedder.from_checkpoint(run, "gallery"), images)


@pytest.fixture(scope="module")
def client(gallery, query):
    from fastapi.testclient import TestClient

    with TestClient(create_app(gallery, query, limits=LIMITS), raise_server_exceptions=False) as client:
        yield client


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def detail(answer):
    assert list(answer.json()) == ["detail"] and "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


def test_a_vector_finds_what_the_index_finds(client, gallery, query):
    """By JSON and by raw float32; of any length, since scores are cosines."""
    feature = query(picture(200))
    expected = gallery.search(query, picture(200), topk=5)
    kind = {"content-type": "application/octet-stream"}
    raw = client.post("/search?topk=5", content=(3 * feature).tobytes(), headers=kind)
    for answer in (client.post("/search", json={"vector": (2 * feature).tolist(), "topk": 5}), raw):
        assert answer.status_code == 200
        content = answer.json()
        assert content["embedded_by"] == "client" and set(content["seconds"]) == {"embed", "search"}
        assert [result["id"] for result in content["results"]] == [match.id for match in expected]
        for result, match in zip(content["results"], expected, strict=True):
            assert result["score"] == pytest.approx(match.score, abs=1e-5)
            assert (result["identity"], result["image"]) == (match.identity, f"/image/{match.id}")


def test_an_image_is_embedded_by_the_server(client, gallery, query):
    image = picture(200)
    answer = client.post("/search", files={"image": ("a.png", png(image))}, data={"topk": "3"})
    assert answer.status_code == 200 and answer.json()["embedded_by"] == "server"
    assert [r["id"] for r in answer.json()["results"]] == [match.id for match in gallery.search(query, image, topk=3)]
    assert len(client.post("/search", files={"image": ("a.png", png(image))}).json()["results"]) == 10


def test_identities_and_cameras_are_left_out(client, gallery, query):
    """Against a sorted product of what is left."""
    feature = query(picture(7))
    cosines = gallery.features() @ feature
    for fields, kept in [
        ({"without_identity": "shoe-3"}, lambda image: image.identity != "shoe-3"),
        ({"without_camera": "0"}, lambda image: image.camera != "0"),
        (
            {"without_identity": "shoe-3", "without_camera": "1"},
            lambda image: image.identity != "shoe-3" and image.camera != "1",
        ),
        ({"without_identity": "nobody"}, lambda image: True),
    ]:
        found = client.post("/search", json={"vector": feature.tolist(), "topk": 20, **fields}).json()["results"]
        order = [n for n in np.argsort(-cosines) if kept(gallery.images[n])][:20]
        assert [result["id"] for result in found] == order, fields


def test_many_at_once_each_get_their_own_answer(client, gallery, query):
    """Searches that wait together go to the index together."""
    features = query([picture(300 + n) for n in range(24)])
    answers = [None] * len(features)

    def ask(number):
        body = {"vector": features[number].tolist(), "topk": 1 + number % 5}
        answers[number] = client.post("/search", json=body).json()["results"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(features))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, feature in enumerate(features):
        expected = gallery.find(feature[None], 1 + number % 5)[0]
        assert [result["id"] for result in answers[number]] == [match.id for match in expected]


def test_images_by_number_and_never_by_path(client, pictures):
    answer = client.get("/image/3")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.content)).size == (40, 30)
    unknown = ["/image/40", "/image/-1", "/image/99999999999999999999", f"/image/{sorted(pictures.iterdir())[0]}"]
    unknown += ["/image/..%2f..%2fetc%2fpasswd", "/page/..%2fsearch.html", "/runtime/x", "/sample/0", "/query.onnx"]
    for path in unknown:
        answer = client.get(path)
        assert answer.status_code in (404, 422), path
        detail(answer)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "is no JSON"),
        ({"content": b"[" * 100_0, "headers": {"content-type": "application/json"}}, 400, "is no JSON"),
        ({"json": [1]}, 422, "must be an object"),
        ({"json": {}}, 422, "list of numbers"),
        ({"json": {"vector": [0.5] * 100}}, 422, "has 100 numbers; the gallery's features have 512"),
        ({"json": {"vector": ["1"] * 512}}, 422, "list of numbers"),
        ({"json": {"vector": [True] * 512}}, 422, "list of numbers"),
        ({"json": {"vector": [0] * 512}}, 422, "finite and not zero"),
        ({"json": {"vector": [10**400] + [1] * 511}}, 422, "none"),
        ({"json": {"vector": [1] * 512, "topk": 21}}, 422, "topk is 21; it must be a number from 1 to 20"),
        ({"json": {"vector": [1] * 512, "topk": 0}}, 422, "topk is 0"),
        ({"json": {"vector": [1] * 512, "topk": 2.5}}, 422, "topk is 2.5"),
        ({"json": {"vector": [1] * 512, "topk": True}}, 422, "topk is True"),
        ({"content": b"abc", "headers": {"content-type": "application/octet-stream"}}, 422, "no float32"),
        ({"content": b"x" * 60_001, "headers": {"content-type": "application/octet-stream"}}, 413, "60,001 bytes"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 422, "neither a vector nor a file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form cannot be read"),
        ({"data": {"image": "text"}, "files": {"other": b"x"}}, 422, "neither a vector nor a file"),
        ({"files": {"image": b"no picture"}}, 422, "the image cannot be read"),
        ({"files": {"image": b""}}, 422, "the image cannot be read"),
        ({"files": {"image": png(np.zeros((400, 300, 3), np.uint8))}}, 413, "has 300 × 400 pixels; 100,000 are"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_requests_are_refused_in_one_line(client, request_, status, message):
    answer = client.post("/search", **request_)
    assert answer.status_code == status and message in detail(answer)


def test_a_vector_with_nan_is_refused(client):
    for number in ("NaN", "Infinity", "-Infinity"):
        body = f'{{"vector": [{", ".join([number] * 512)}]}}'
        answer = client.post("/search", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422 and "finite" in detail(answer)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_requests_leave_it_answering_and_its_memory_flat(client, query, count):
    """Random bytes, cut bodies and wrong kinds; the answer is always 4xx in one line."""
    rng = random.Random(1)
    whole = json.dumps({"vector": query(picture(1)).tolist(), "topk": 3}).encode()
    kinds = ["application/json", "application/octet-stream", "multipart/form-data; boundary=x", "text/html", ""]
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n--x--\r\n'
    for number in range(count):
        if number == count // 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        body = whole[: rng.randrange(len(whole))] if number % 3 == 0 else rng.randbytes(rng.randrange(300))
        if number % 3 == 1:
            body = form % body
        answer = client.post("/search", content=body, headers={"content-type": kinds[number % 5]})
        assert 400 <= answer.status_code < 500, (answer.status_code, body)
        detail(answer)
    assert client.post("/search", content=whole, headers={"content-type": "application/json"}).status_code == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"


def test_too_many_and_too_long_requests_are_refused(gallery, query):
    from fastapi.testclient import TestClient

    class Slow:
        description = query.description

        def __call__(self, image):
            time.sleep(0.4)
            return query(image)

    app = create_app(gallery, Slow(), limits=Limits(requests=1, seconds=0.2))
    with TestClient(app, raise_server_exceptions=False) as client:
        answers = []
        asked = {"files": {"image": png(picture(1))}}
        thread = threading.Thread(target=lambda: answers.append(client.post("/search", **asked)))
        thread.start()
        time.sleep(0.1)
        busy = client.get("/health")
        thread.join()
        assert busy.status_code == 503 and "too many requests" in detail(busy) and busy.headers["retry-after"]
        assert answers[0].status_code == 503 and "more than 0.2 s" in detail(answers[0])
        time.sleep(0.4)
        assert client.get("/health").json() == {"status": "ok", "images": 40, "network": gallery.network}


def test_metrics_and_openapi(client):
    client.get("/health")
    text = client.get("/metrics").text
    assert 'd3still_requests_total{route="/health",status="200"}' in text and "d3still_images 40.0" in text
    assert "/search" in client.get("/openapi.json").json()["paths"]


def test_the_page_asks_no_outside_address(client):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/", "/page/search.js", "/page/search.css"):
        text = client.get(path).text
        assert "http:" not in text and "https:" not in text and "innerHTML" not in text
    settings = client.get("/settings").json()
    assert settings["in_browser"] is False and settings["size"] == [12, 16]


def test_without_a_query_network_it_takes_features_only(gallery):
    from fastapi.testclient import TestClient

    with TestClient(create_app(gallery)) as client:
        answer = client.post("/search", files={"image": png(picture(1))})
        assert answer.status_code == 422 and "send a vector" in detail(answer)


def test_a_network_of_another_gallery_is_refused(gallery, tmp_path):
    retrained = Embedder.from_checkpoint(save_run(tmp_path / "acd.pth", gallery=3), "query")
    with pytest.raises(UserError, match="must be embedded again"):
        create_app(gallery, retrained)


@pytest.fixture
def serve_net(monkeypatch):
    from tests.tiny import REPOSITORY

    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import serve_net

    return serve_net


def test_a_port_in_use_is_named(serve_net):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1 port {port}: .*another --port"):
            serve_net.bound("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen"):
        serve_net.bound("127.0.0.1", 99999)
    with serve_net.bound("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP, "else asyncio leaves Nagle's algorithm on: 40 ms an answer"
    assert serve_net.is_loopback("127.0.0.1") and serve_net.is_loopback("::1")
    assert not serve_net.is_loopback("0.0.0.0") and not serve_net.is_loopback("example.org")


def test_sigterm_lets_a_request_at_work_end(serve_net, gallery, tmp_path, monkeypatch):
    """The command returns, which is status 0, once a request whose body was still to come has its answer."""
    import faiss

    limit = "distance_compute_blas_threshold"  # that the command sets; put back after the test
    monkeypatch.setattr(faiss.cvar, limit, getattr(faiss.cvar, limit))
    gallery.save(tmp_path / "gallery.index")
    listening, body, answers = serve_net.bound("127.0.0.1", 0), gallery.features()[0].tobytes(), []
    asked = socket.create_connection(listening.getsockname(), timeout=20)

    def ask():
        head = "POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        asked.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        answers.append(asked.recv(999)[:12])  # the service reads the body: the request is at work
        os.kill(os.getpid(), signal.SIGTERM)
        while listening.fileno() >= 0:  # until nobody else is let in
            time.sleep(0.01)
        asked.sendall(body)
        answers.append(asked.recv(999)[:12])

    monkeypatch.setattr(serve_net, "bound", lambda *_: listening)
    monkeypatch.setattr(sys, "argv", ["serve_net", "--index", str(tmp_path / "gallery.index")])
    former, thread = signal.getsignal(signal.SIGTERM), threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        assert serve_net.main() is None
    finally:
        signal.signal(signal.SIGTERM, former)
    thread.join(20)
    assert answers == [b"HTTP/1.1 100", b"HTTP/1.1 200"]
