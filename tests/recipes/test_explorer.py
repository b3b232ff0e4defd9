"""The explorer: what it computes is what the model computes, and it answers this machine only."""

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import loopax
from loopax.cli import main
from loopax.recipes.vae import explorer
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.explorer import Explorer
from loopax.recipes.vae.problem import Problem
from loopax.recipes.vae.server import listen
from loopax.recipes.vae.trained import TrainedVAE
from loopax.run.directory import RunDir

PATIENCE_S = 60.0
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MEAN_NAME = "<img src=x onerror=\"document.title='stolen'\">"


def trained_vae(directory, shape, classes, names=None, **settings):
    """A VAE as it was before training: what is tested here asks no more of it."""
    count = max(60, 5 * classes)
    label = np.arange(count) % classes
    image = np.random.default_rng(0).random((count, *shape)) * 255
    np.savez(directory / "images.npz", image=image.astype(np.uint8), label=label)
    settings = {"widths": (8,), "latent": 3, "batch_size": 10, **settings}
    problem = Problem.of(VAEConfig(data=str(directory / "images.npz"), **settings))
    if names:
        splits = (each and dataclasses.replace(each, class_names=names) for each in problem.data)
        problem = dataclasses.replace(problem, data=type(problem.data)(*splits))
    return TrainedVAE.of(problem, problem.state().params, RunDir(directory), 0)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    directory = tmp_path_factory.mktemp("colour")
    return Explorer(trained_vae(directory, (5, 4, 3), 3, ("cat", MEAN_NAME, "dog")))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Grey, ten classes: each image is a white square about the middle of a black one."""
    vae = trained_vae(tmp_path_factory.mktemp("digits"), (12, 12, 1), 10, latent=12)
    vae.data.train.columns["image"][:] = 0
    vae.data.train.columns["image"][::2, 3:9, 4:8] = 255
    vae.data.train.columns["image"][1::2, 3:9, 4:8] = 200
    return Explorer(vae)


def asked(server, path, question=None, host=None):
    """The status and the body that a request of the page is answered with."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=PATIENCE_S)
    headers = {"Host": host or f"localhost:{server.server_port}"}
    body = None if question is None else json.dumps(question)
    connection.request("GET" if body is None else "POST", path, body, headers)
    with contextlib.closing(connection), connection.getresponse() as answer:
        return answer.status, answer.read()


@contextlib.contextmanager
def serving(ready):
    """A server on a free port, with an explorer that is ready."""
    with listen() as server:
        server.explorer = ready
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(colour):
    with serving(colour) as server:
        yield server


def in_base64(image):
    return base64.b64encode(image.tobytes()).decode()


def pixels_of(images):
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8).tobytes()


def test_what_is_asked_is_what_the_model_says(colour, server):
    vae, image = colour.trained, colour.trained.data.test.columns["image"][0]
    _, body = asked(server, "/encode", {"pixels": in_base64(image), "label": 2})
    found = json.loads(body)
    mean, _ = vae.encode(image[None], np.array([2]))
    assert found["label"] == 2
    np.testing.assert_array_equal(np.float32(found["latent"]), mean[0])
    for labels in ([2], [0, 1, 2], [1, 0]):
        status, drawn = asked(server, "/decode", {"latent": found["latent"], "labels": labels})
        assert status == 200
        images = vae.decode(np.repeat(mean, len(labels), axis=0), np.array(labels))
        seen = np.frombuffer(drawn, np.uint8).astype(int)
        assert np.abs(seen - np.frombuffer(pixels_of(images), np.uint8)).max() <= 1
    _, body = asked(server, "/sample", {"label": 1, "seed": 7})
    sampled = np.float32(json.loads(body)["latent"])
    np.testing.assert_array_equal(sampled, vae.latents_of(np.array([1]), seed=7)[0])


def test_the_facts_name_classes_shapes_and_the_most_active_latents(server, digits):
    facts = json.loads(asked(server, "/model.json")[1])
    assert facts["classes"] == ["cat", MEAN_NAME, "dog"]
    assert (facts["height"], facts["width"], facts["channels"]) == (5, 4, 3)
    assert len(facts["sliders"]) == 3
    assert facts["drawing"] is None
    assert len(digits.facts["sliders"]) == explorer.SLIDERS


def test_sliders_are_standardised_and_the_most_active_comes_first():
    latents = np.random.default_rng(0).normal(5, 1, (2000, 20)) * np.arange(20)
    found = explorer.sliders(latents.astype(np.float32))
    assert [each["dimension"] for each in found] == [19, 18, 17, 16, 15, 14, 13, 12]
    assert found[0]["mean"] == pytest.approx(95, rel=0.02)
    assert found[0]["deviation"] == pytest.approx(19, rel=0.05)
    middle = explorer.BINS // 2
    assert np.argmax(found[0]["histogram"]) == pytest.approx(middle, abs=4)
    still = explorer.sliders(np.ones((9, 2), np.float32))
    assert [each["deviation"] for each in still] == [0, 0]


def test_a_drawing_is_made_like_images_that_are_centred_by_mass():
    images = np.zeros((50, 12, 10, 1), np.uint8)
    images[:, 3:9, 4:7] = 255
    assert explorer.drawing_style(images) == {"paper": 0, "centre": [6.0, 5.5], "extent": 6.0}
    assert explorer.drawing_style(255 - images)["paper"] == 255
    scattered = np.stack([np.roll(each, index, 0) for index, each in enumerate(images)])
    assert explorer.drawing_style(scattered)["extent"] is None
    assert explorer.drawing_style(np.zeros((3, 4, 4, 1), np.uint8))["paper"] == 0
    assert explorer.drawing_style(np.zeros((3, 4, 4, 3), np.uint8)) is None


def test_mnist_is_recognised_as_centred():
    style = explorer.drawing_style(loopax.data.mnist().train.columns["image"][::60])
    assert style["paper"] == 0
    assert style["extent"] == 20
    assert style["centre"] == pytest.approx([14.5, 14.5], abs=0.1)


def test_an_unknown_class_is_the_one_of_the_least_cost(colour):
    vae, image = colour.trained, colour.trained.data.test.columns["image"][2]
    costs = []
    for label in range(3):
        labels = np.array([label])
        mean, logvar = vae.encode(image[None], labels)
        error = vae.decode(mean, labels)[0] - image.astype(np.float32) / 255
        kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum()
        costs.append(0.5 * np.square(error).sum() + vae.config.kl_weight * kl)
    found = colour.encode(in_base64(image), None)
    assert found["label"] == colour.guess(image) == int(np.argmin(costs))


def test_a_class_is_guessed_by_the_prior_where_only_that_knows_it(tmp_path):
    """The decoder and the encoder see no class, so that any other cost is the same for all."""
    settings = {"likelihood": "bernoulli", "kl_weight": 1.0, "prior": "class"}
    vae = trained_vae(tmp_path, (5, 4, 1), 3, conditioning="none", **settings)
    image = vae.data.test.columns["image"][0]
    mean, _ = vae.encode(image[None], np.array([0]))
    params = jax.tree.map(np.array, vae.params)
    for kernel in jax.tree.leaves(params["params"]["prior_of_class"]):
        kernel[...] = 0
        if kernel.shape == (3, 6):
            kernel[:, :3] = mean + np.array([[3.0], [-2.0], [0.5]])
    explorer = Explorer(dataclasses.replace(vae, params=params))
    assert explorer.facts["conditional"]
    assert explorer.guess(image) == 2


def test_of_many_classes_each_is_guessed_from_and_decoded(tmp_path):
    many = Explorer(trained_vae(tmp_path, (4, 6, 1), 40))
    image = many.trained.data.test.columns["image"][0]
    found = many.encode(in_base64(image), None)
    assert 0 <= found["label"] < 40
    assert len(many.decode(found["latent"], [39])) == 24


def test_only_this_machine_and_only_what_there_is(server):
    port = server.server_port
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{port}/"
    assert asked(server, "/", host=f"127.0.0.1:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1"):
        assert asked(server, "/model.json", host=host)[0] == 403
        assert asked(server, "/sample", {"label": 0, "seed": 1}, host=host)[0] == 403
    assert asked(server, "/../config.json")[0] == 404
    assert asked(server, "/config.json", {})[0] == 404


def test_a_question_that_fails_is_told_in_the_terminal_and_ends_nothing(server, capsys):
    status, body = asked(server, "/decode", {"latent": [0], "labels": [0]})
    assert (status, body.count(b"\n")) == (500, 1)
    assert "Traceback" in capsys.readouterr().err
    assert asked(server, "/sample", {"label": 0, "seed": 1})[0] == 200


def test_the_page_brings_all_it_needs(server):
    text = asked(server, "/")[1].decode()
    assert not any(word in text for word in ("innerHTML", "@import", " src="))
    addresses = [part.split('"')[0].split("'")[0] for part in text.split("http")[1:]]
    assert addresses == ["://www.w3.org/2000/svg"]  # a name, not a place


def test_the_command_serves_until_it_is_interrupted(tiny_vae):
    run = str(tiny_vae.dir.path)
    command = [sys.executable, "-m", "loopax", "explore", run, "--no-open-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            address = process.stdout.readline().decode().split()[0]
            host = address.removeprefix("http://").rstrip("/")
            connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
            connection.request("GET", "/model.json")
            found = json.loads(connection.getresponse().read())
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert found["run"] == tiny_vae.dir.path.name
    assert process.returncode == 0
    assert complaint.count(b"\n") == 1, "which checkpoint it is"


def test_a_port_in_use_and_one_that_is_none_are_one_line(tiny_vae, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for wrong in (port, 65536):
            assert main(["explore", str(tiny_vae.dir.path), "--port", str(wrong)]) == 2
            assert f"port {wrong} cannot be had: " in capsys.readouterr().err


# What a browser's process is told and tells, by its pipes 3 and 4 (the DevTools protocol).
LAUNCH = """
import os, sys
reads, writes = (os.dup(int(each)) for each in sys.argv[1:3])
reads, writes = (os.dup2(each, 50 + each) for each in (reads, writes))
os.dup2(reads, 3), os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium without a window, showing one page."""

    def __init__(self, profile):
        theirs, self._to = os.pipe()
        self._from, writes = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs), str(writes), CHROMIUM, *options],
            pass_fds=(theirs, writes),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(writes)
        self._unread, self._count, self._session, self.complaints = b"", 0, {}, []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        session = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")
        self.tell("Emulation.setFocusEmulationEnabled", enabled=True)

    def tell(self, method, **params):
        """The result of a command; what the page complains of meanwhile is kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            if answer["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(answer["params"])
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._unread:
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression):
        """The value of an expression of JavaScript in the page, awaited."""
        result = self.tell(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression):
        """Waits for an expression to become true."""
        end = time.monotonic() + PATIENCE_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never: {expression}; {self.status}"
            time.sleep(0.02)

    def press(self, points):
        """A stroke of the mouse through points on the page."""
        for index, (x, y) in enumerate(points):
            kind = "mouseMoved" if index else "mousePressed"
            self._mouse(kind, x, y, 1)
        self._mouse("mouseReleased", *points[-1], 0)

    def _mouse(self, kind, x, y, buttons):
        self.tell(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons,
            clickCount=1,
        )  # fmt: skip

    def key(self, name):
        """A key that is pressed and let go."""
        code = {"ArrowRight": 39, "ArrowLeft": 37}[name]
        for kind in ("keyDown", "keyUp"):
            self.tell(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                windowsVirtualKeyCode=code,
            )  # fmt: skip

    def shows(self, address, width=1280, height=800):
        """Goes to the explorer and waits until it has drawn."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.tell("Page.navigate", url=address)
        self.until("document.documentElement?.dataset.drawn > 0")

    @property
    def status(self):
        return self.evaluate("document.getElementById('status').textContent")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


MIDDLE_OF_PAD = """(() => {
  const pad = document.getElementById('pad');
  pad.scrollIntoView({block: 'center'});
  const box = pad.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2, box.width];
})()"""
PROPORTIONS = """['picture', 'pad'].map((id) => {
  const box = document.getElementById(id).getBoundingClientRect();
  return box.width / box.height;
})"""
SHOWN_PICTURE = """(() => {
  const picture = document.getElementById('picture'), {width, height} = picture;
  return Array.from(picture.getContext('2d').getImageData(0, 0, width, height).data);
})()"""
DRAWN = "Number(document.documentElement.dataset.drawn)"


# Far beyond its ends, where a sample of an untrained model may lie, a slider does not move.
AT_THE_MEAN = """(() => {
  for (const {slider} of state.sliders) state.latent[slider.dimension] = slider.mean;
  go(state.latent, false);
})()"""


def shown_pixels(browser, explorer):
    height, width, channels = explorer.image_shape
    rgba = np.array(browser.evaluate(SHOWN_PICTURE), np.uint8).reshape(height, width, 4)
    return rgba[..., :channels]


def test_a_browser_samples_moves_resets_and_changes_the_class(browser, digits):
    with serving(digits) as server:
        browser.shows(server.address)
        assert browser.status == "A sample · class 0"
        assert browser.evaluate("document.querySelectorAll('.class').length") == 10
        browser.evaluate(AT_THE_MEAN)
        browser.until(f"{DRAWN} > 1")
        first, before = browser.evaluate("state.latent"), browser.evaluate(DRAWN)
        browser.evaluate("document.querySelector('#sliders input').focus()")
        browser.key("ArrowRight")
        browser.until(f"{DRAWN} > {before}")
        moved, slider = browser.evaluate("state.latent"), digits.facts["sliders"][0]
        dimension = slider["dimension"]
        step = (moved[dimension] - first[dimension]) / slider["deviation"]
        assert 0 < step <= 0.1001
        assert moved[:dimension] + moved[dimension + 1 :] == (
            first[:dimension] + first[dimension + 1 :]
        )
        assert browser.status == "Moved from a sample · class 0"
        drawn = digits.decode(moved, list(range(10)))
        assert shown_pixels(browser, digits).tobytes() == drawn[:144]
        browser.evaluate("document.getElementById('reset').click()")
        assert browser.evaluate("state.latent") == first
        browser.evaluate("document.querySelector('.class input').focus()")
        browser.key("ArrowRight")
        browser.until("document.getElementById('status').textContent == 'A sample · class 1'")
        browser.evaluate("document.getElementById('another').click()")
        browser.until(f"state.latent[0] != {first[0]}")
        assert browser.complaints == []


def test_a_browser_draws_and_the_drawing_is_centred_as_the_images_are(browser, digits):
    assert digits.facts["drawing"] == {"paper": 0, "centre": [6.0, 6.0], "extent": 6.0}
    with serving(digits) as server:
        browser.shows(server.address)
        x, y, wide = browser.evaluate(MIDDLE_OF_PAD)
        browser.press([(x - wide / 3, y + part * wide / 3) for part in (-1, -0.5, 0, 0.5, 1)])
        browser.until("document.getElementById('status').textContent.startsWith('Your image')")
        image = np.array(browser.evaluate("Array.from(state.image)")).reshape(12, 12)
        assert np.flatnonzero(image.sum(axis=1) > 50).tolist() == list(range(3, 9))
        assert abs(image.sum(axis=0) @ (np.arange(12) + 0.5) / image.sum() - 6) < 0.2
        pixels = in_base64(image.astype(np.uint8))
        found = digits.encode(pixels, None)
        browser.until(f"state.label === {found['label']}")
        browser.until(f"Math.abs(state.latent[0] - {found['latent'][0]}) < 1e-6")
        np.testing.assert_allclose(browser.evaluate("state.latent"), found["latent"], atol=1e-6)
        browser.evaluate("document.getElementById('centre').click()")
        browser.until("state.image[0] === 0")
        image = np.array(browser.evaluate("Array.from(state.image)")).reshape(12, 12)
        assert image[:, :1].sum() == 0
        assert image[6, 2] > 100
        browser.evaluate("document.getElementById('clear').click()")
        assert browser.evaluate("state.image") is None
        assert browser.complaints == []


DROP = """(async () => {
  const sheet = document.createElement('canvas');
  Object.assign(sheet, {width: WIDE, height: HIGH});
  const context = sheet.getContext('2d');
  context.fillStyle = 'rgb(200 100 50)';
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.fillStyle = 'rgb(0 0 255)';
  context.fillRect(0, 0, sheet.width / 2, sheet.height);
  const blob = await new Promise((done) => sheet.toBlob(done));
  const carried = new DataTransfer();
  carried.items.add(new File([blob], 'some.png', {type: 'image/png'}));
  document.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, cancelable: true}));
})()"""


@pytest.mark.parametrize("size", [(4, 5), (400, 333), (2, 2)])
def test_a_browser_takes_a_dropped_colour_image(browser, colour, size):
    with serving(colour) as server:
        browser.shows(server.address)
        wide, high = size
        browser.evaluate(DROP.replace("WIDE", str(wide)).replace("HIGH", str(high)))
        browser.until("document.getElementById('status').textContent.startsWith('Your image')")
        image = np.array(browser.evaluate("Array.from(state.image)")).reshape(5, 4, 3)
        np.testing.assert_allclose(image[:, 3], np.tile([200, 100, 50], (5, 1)), atol=1)
        np.testing.assert_allclose(image[:, 0], np.tile([0, 0, 255], (5, 1)), atol=1)
        assert browser.complaints == []


def test_a_browser_shows_mean_names_as_text_and_fits_a_phone(browser, colour):
    with serving(colour) as server:
        for width in (1280, 360):
            browser.shows(server.address, width)
            names = (
                "Array.from(document.querySelectorAll('.class span'), (each) => each.textContent)"
            )
            assert browser.evaluate(names) == ["cat", MEAN_NAME, "dog"]
            assert browser.evaluate("document.querySelectorAll('img').length") == 0
            assert "stolen" not in browser.evaluate("document.title")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        unnamed = """Array.from(document.querySelectorAll('button, input, select')).filter(
            (each) => !each.textContent.trim() && !each.labels?.length).length"""
        assert browser.evaluate(unnamed) == 0
        assert browser.complaints == []


def test_a_browser_shows_what_was_refused(browser, colour):
    with serving(colour) as server:
        browser.shows(server.address)
        browser.evaluate("state.latent = [0]; redraw()")
        browser.until("document.getElementById('status').classList.contains('wrong')")
        assert browser.status == "this failed; the terminal of loopax explore says why"
    browser.complaints.clear()


@pytest.mark.parametrize("classes", [1, 40])
def test_a_browser_shows_no_classes_for_one_and_all_of_many(browser, classes, tmp_path):
    many = Explorer(trained_vae(tmp_path, (4, 6, 1), classes))
    with serving(many) as server:
        browser.shows(server.address, 390, 844)
        browser.until(f"{DRAWN} >= {1 if classes == 1 else 3}")
        assert browser.evaluate(PROPORTIONS) == pytest.approx([1.5, 1.5], rel=0.02)
        assert browser.evaluate("document.getElementById('class-part').hidden") == (classes == 1)
        assert browser.evaluate("state.thumbs.length") == (classes if classes > 1 else 0)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.complaints == []
