"""The report page in a real browser: nothing from outside, nothing overflows, mouse and keyboard work.

Needs Debian's chromium and chromium-driver; where they are missing the tests are skipped and say so.
"""

import json
import shutil
import time
import warnings

import pytest

from d3still.reporting.comparison import compare
from d3still.reporting.outputs import write_comparison
from d3still.runs.finished import find_runs
from tests.reporting.fabricate import config, fake_lists, images, make_log, make_run

PACKAGES = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "chromium-driver": ("chromedriver",)}
FLAGS = (
    "--headless",
    "--no-sandbox",  # a browser run by root needs it
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "<img src=x onerror='window.hacked=1'>&amp;\"é😀.png"
WIDTHS, SCHEMES = (360, 1280), ("light", "dark")
HEIGHT = 800
PATIENCE = 10.0  # seconds
MIN_CONTRAST = 4.5  # WCAG 2.2, AA, text
VISIBLE = "return !document.getElementById('tip').hidden"
TIP = "return document.getElementById('tip').textContent"
# Luminance contrast of every visible piece of text with the background behind it, by WCAG's formula.
CONTRASTS = """
function channel(v) { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }
function luminance(c) { return 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]); }
function parse(text) { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; }
function background(e) {
  for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
  return parse(getComputedStyle(document.documentElement).backgroundColor);
}
const found = [];
const kinds = 'h1,h2,h3,h4,p,li,td,th,small,a,summary,span,figcaption,code,b,strong,text';
for (const e of document.querySelectorAll(kinds)) {
  if (!e.textContent.trim() || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), colour = parse(e.localName === 'text' ? style.fill : style.color);
  const a = luminance(colour), b = luminance(background(e));
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.localName}: ${e.textContent}`]);
}
found.sort((a, b) => a[0] - b[0]);
return found[0];
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two baselines with controls, two seeds, and hostile names."""
    root = tmp_path_factory.mktemp("browser")
    queries = images(root / "images", identities=20)
    hostile = [(path.replace("_c002_0.png", f"_c002_{HOSTILE}"), identity) for path, identity in queries]
    log = make_log(root / "log", hostile)
    finetune = {"ROP__KD_WEIGHT": 0, "ACD__ALPHA": 0, "ACD__BETA": 0}
    raml = {"DISTILLER__STUDENT_PRETRAIN_PATH": "{root}/emoji/raml/seed{seed}/last.pth", "ACD__BASELINE": "RAML"}
    for seed in (2024, 2025):

        def add(stage, name, air, seed=seed, **settings):
            cfg = config(stage, log, seed, OUTPUT_DIR__EXPERIMENT_NAME=f"emoji/{name}", **settings)
            make_run(cfg, hostile, air, 0.69)

        add("acd_rop", "acd_rop-finetune", 0.52, **finetune)
        add("rop", "raml", 0.45, DISTILLER__TYPE="RAML")
        add("acd_rop", "acd_raml", 0.44, **raml)
        add("acd_rop", f"{HOSTILE.replace('/', '')}_mine", 0.57, RAHO__GAMMA=0.9)
    write_comparison(compare(*find_runs(log)), root / "out", fake_lists(hostile))
    return root / "out" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a profile of its own."""
    found = {package: next(filter(None, map(shutil.which, names)), None) for package, names in PACKAGES.items()}
    missing = [package for package, path in found.items() if path is None]
    if missing:
        reason = (
            f"the browser tests need Debian's packages {' and '.join(missing)}: apt-get install {' '.join(missing)}"
        )
        warnings.warn(reason, stacklevel=1)  # -q hides the reason of a skip, not a warning
        pytest.skip(reason)
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser tests need the Python package selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(found["chromium-driver"])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def visit(browser, page, width=1280, scheme="light", unfold=True):
    """Open the page afresh at a width, in a colour scheme, with everything unfolded."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})  # as if its window had the focus
    browser.get("about:blank")
    browser.get(page.as_uri())
    if unfold:
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


def press(browser, *names):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    actions = ActionChains(browser)
    for name in names:
        actions.send_keys(getattr(Keys, name))
    actions.perform()


def soon(condition):
    """Whether something holds within a few seconds: a page hears of the mouse a frame later, or many when busy."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def active_label(browser):
    return browser.execute_script("return document.activeElement.getAttribute('aria-label')")


def test_no_error_and_no_request(browser, report):
    browser.get_log("browser"), browser.get_log("performance")
    visit(browser, report)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert report.as_uri() in urls
    assert all(url in (report.as_uri(), "about:blank") or url.startswith("data:") for url in urls), urls
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert browser.execute_script("return document.images.length") > 50 and browser.execute_script(broken) == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fits_the_window_and_can_be_read(browser, report, width, scheme):
    visit(browser, report, width, scheme)
    assert browser.execute_script("return innerWidth") == width
    measured = "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    scroll, client = browser.execute_script(measured)
    assert scroll <= client, "the page itself never scrolls sideways"
    outside = """
    return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && e.id !== 'tip'
      && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 99))
    """
    assert browser.execute_script(outside) == []
    contrast, where = browser.execute_script(CONTRASTS)
    assert contrast >= MIN_CONTRAST, where
    smallest = """
    return Math.min(...[...document.querySelectorAll('.chart text')].filter(e => e.getClientRects().length)
      .map(e => 12 * e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width))
    """
    assert browser.execute_script(smallest) >= 9, "pixels of the charts' letters"


def test_light_and_dark_differ(browser, report):
    found = set()
    for scheme in SCHEMES:
        visit(browser, report, scheme=scheme)
        found.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(found) == 2


def test_a_wide_table_scrolls_in_its_own_container(browser, report):
    visit(browser, report, width=360)
    sizes = browser.execute_script(
        "const t = document.querySelector('.scroll'); t.focus(); t.scrollLeft = 99;"
        "return [t.scrollWidth, t.clientWidth, t.scrollLeft, document.activeElement === t]"
    )
    assert sizes[0] > sizes[1] and sizes[2] == 99 and sizes[3], "by touch, wheel and arrow keys alike"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["up", "dot", "bar"])
def test_pointing_at_a_mark_tells_what_it_is(browser, report, width, kind):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    visit(browser, report, width)
    point = browser.find_element(By.CSS_SELECTOR, f".pt.{kind}")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", point)
    ActionChains(browser).move_to_element(point).perform()
    assert soon(lambda: browser.execute_script(VISIBLE))
    shown = browser.execute_script(
        "const b = document.getElementById('tip').getBoundingClientRect();"
        "return [b.left, b.top, document.documentElement.clientWidth - b.right, innerHeight - b.bottom]"
    )
    assert min(shown) >= 0, "the whole text is in the window"
    under = browser.execute_script(
        "const b = arguments[0].getBoundingClientRect();"
        "const e = document.elementFromPoint(b.left + b.width / 2, b.top + b.height / 2).closest('.pt');"
        "return e && e.getAttribute('aria-label')",
        point,
    )
    assert soon(lambda: browser.execute_script(TIP) == under), "points may lie on each other: the topmost speaks"
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert soon(lambda: not browser.execute_script(VISIBLE))


def test_the_keyboard_reaches_every_point(browser, report):
    visit(browser, report, unfold=False)
    labels = browser.execute_script(
        "const chart = document.querySelector('.pt.up').closest('.chart');"
        "chart.querySelector('.pt').focus();"
        "return [...chart.querySelectorAll('.pt')].map(p => p.getAttribute('aria-label'))"
    )
    assert active_label(browser) == labels[0] == browser.execute_script(TIP) and browser.execute_script(VISIBLE)
    press(browser, "ARROW_RIGHT", "ARROW_DOWN")
    assert active_label(browser) == labels[2] == browser.execute_script(TIP)
    press(browser, "ARROW_LEFT")
    assert active_label(browser) == labels[1]
    press(browser, "END")
    assert active_label(browser) == labels[-1]
    press(browser, "ARROW_RIGHT")
    assert active_label(browser) == labels[-1], "the last one has no next"
    press(browser, "HOME", "ESCAPE")
    assert active_label(browser) == labels[0] and not browser.execute_script(VISIBLE)


def test_a_chart_is_one_stop_of_the_tab_key(browser, report):
    """From the top of the page, all that reacts is reached, and no chart takes more than one stop."""
    visit(browser, report)
    stops = []
    for _ in range(60):
        press(browser, "TAB")
        stop = browser.execute_script(
            "const e = document.activeElement, c = e.closest('.chart');"
            "return c ? 'chart' + [...document.querySelectorAll('.chart')].indexOf(c) : e.localName"
        )
        if stop == "body":
            break
        stops.append(stop)
    charts = [stop for stop in stops if stop.startswith("chart")]
    assert (
        len(charts) == len(set(charts)) == browser.execute_script("return document.querySelectorAll('.chart').length")
    )
    assert {"a", "summary", "div"} <= set(stops)
    outline = "return getComputedStyle(document.querySelector('a')).outlineStyle"
    browser.execute_script("document.body.focus()")
    press(browser, "TAB")
    assert browser.execute_script(outline) != "none", "what has the focus is seen to have it"


def test_links_unfold_what_they_lead_to(browser, report):
    visit(browser, report, unfold=False)
    is_open = "return document.getElementById('row1').open"
    assert not browser.execute_script(is_open)
    browser.execute_script("document.querySelector('nav a[href=\"#row1\"]').click()")
    assert browser.execute_script(is_open)
    browser.execute_script("document.getElementById('row1').open = false")
    browser.execute_script("document.querySelector('nav a[href=\"#row1\"]').click()")
    assert browser.execute_script(is_open), "also the second time"


def test_hostile_names_stay_text(browser, report):
    visit(browser, report)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelector('img[src=\"x\"]')") is None
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.pt.up, .pt.down')].map(p => p.getAttribute('aria-label'))"
    )
    assert any(HOSTILE in label for label in labels)
    browser.execute_script(
        "const all = [...document.querySelectorAll('.pt.up, .pt.down')];"
        "all.find(p => p.getAttribute('aria-label').includes('onerror')).focus()"
    )
    assert (
        soon(lambda: HOSTILE in browser.execute_script(TIP)) and browser.execute_script("return window.hacked") is None
    )
    assert browser.execute_script("return document.getElementById('tip').children.length") == 0
