"""The report in a real browser: it draws, reacts to pointer and keyboard, and fits the width of the window."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automixalign.report import page as report_page
from automixalign.report import runs
from automixalign.report.comparison import write_comparison
from automixalign.storage import files
from tests.browser.chromium import EXECUTABLE, Page, browser
from tests.report.report_run import EVERYWHERE, HOSTILE, hostile_facts, write_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on the PATH; Debian: apt install chromium"),
]

VIEWS = [(width, dark) for width in (1280, 400) for dark in (False, True)]
SECTIONS = ["leaderboard", "tasks", "examples", "trajectories", "curves"]
SECTIONS += ["data", "cost", "configuration", "limits"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, and the page of two runs."""
    folder = tmp_path_factory.mktemp("reports")
    folders = [write_run(folder / f"seed-{seed}", seed) for seed in (0, 1)]
    write_comparison(folders, folder / "seeds.html")
    return {"run": folders[0] / runs.PAGE, "comparison": folder / "seeds.html"}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """A tab; the test fails if the page logs an error or loads anything else."""
    tab.errors.clear()
    tab.requests.clear()
    yield tab
    assert not tab.errors
    assert all(address.startswith("file:") for address in tab.requests)
    assert len(set(tab.requests)) == 1
    assert tab.run("window.hacked") is None


def column(page: Page, number: int) -> list[str]:
    """The texts in a column of the leaderboard, without the small ones below."""
    cells = f"[...document.querySelectorAll('#leaderboard tbody tr')].map((row) => row.children[{number}])"
    return list(page.run(f"{cells}.map((cell) => cell.firstChild.textContent)"))


def headers(page: Page) -> list[str]:
    return list(page.run("[...document.querySelectorAll('#leaderboard thead th')].map((th) => th.textContent)"))


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_the_page_never_scrolls_sideways(
    page: Page, reports: dict[str, Path], tmp_path: Path, kind: str, width: int, dark: bool
) -> None:
    page.open(reports[kind], width, dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
    page.screenshot(tmp_path / f"{kind}-{width}-{'dark' if dark else 'light'}.png")


def test_sections_are_in_order(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    assert page.run("[...document.querySelectorAll('main > section')].map((part) => part.id)") == SECTIONS
    assert page.run("[...document.querySelectorAll('nav a')].map((link) => link.hash.slice(1))") == SECTIONS
    verdict = page.run("document.querySelector('.verdict').innerText").splitlines()
    assert [line.split(":")[0].split(",")[0] for line in verdict] == ["No model is chosen", "On the test split"]
    assert page.run("[...document.querySelectorAll('#trajectories svg, #curves svg')].length") == 6
    curves = page.run("[...document.querySelectorAll('svg path')].map((curve) => curve.getAttribute('d'))")
    assert len(curves) == 12
    assert all(curve.startswith("M") and "NaN" not in curve for curve in curves)


def test_texts_are_shown_unchanged(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    assert HOSTILE in page.run("document.querySelector('#data').textContent")
    assert HOSTILE in page.run("document.querySelector('main').textContent")
    assert page.run("document.querySelectorAll('img').length") == 0


def test_no_text_becomes_html(page: Page, reports: dict[str, Path], tmp_path: Path) -> None:
    """Every name and text is hostile, also those that the schema would refuse; with warnings and stages."""
    facts = files.read_json(reports["run"].parents[1] / runs.FACTS)
    facts["warnings"] = ["a warning"]
    facts["cards"] = ["uniform"]
    facts["stages"] = [{"stage": "a step", "name": "of a task", "seconds": 1.0}]
    report_page.write(hostile_facts(facts), tmp_path / "hostile.html")
    page.open(tmp_path / "hostile.html")
    assert page.run("[...document.querySelectorAll('main > section')].map((part) => part.id)") == SECTIONS
    made = page.run("[...new Set([...document.querySelectorAll('*')].map((one) => one.localName))]")
    assert not {"img", "iframe", "base", "form", "object", "embed"} & set(made)
    assert page.run("document.querySelectorAll('script').length") == 2
    links = page.run("[...document.querySelectorAll('main a')].map((link) => link.getAttribute('href'))")
    assert [link[: len("../models/")] for link in links] == ["../models/"]
    events = "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
    assert not [name for name in page.run(events) if name.startswith("on")]
    text = page.run("document.body.innerText + [...document.querySelectorAll('pre')].map((x) => x.textContent)")
    assert text.count("window.hacked = 1") > 40, "every text is shown"
    for select in ("#leaderboard", "#trajectories", "#curves"):
        for value in page.run(f"[...document.querySelectorAll('{select} option')].map((one) => one.value)"):
            choose(page, select, value)
    assert EVERYWHERE.partition("\u2028")[0] in page.run("document.querySelector('h1').textContent")


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("const it = document.createElement('script'); it.textContent = 'window.hacked = 8';", "script-src"),
        ("const it = document.createElement('img'); it.src = 'http://127.0.0.1:9/x.png';", "default-src"),
        ("const it = document.createElement('base'); it.href = 'http://127.0.0.1:9/';", "base-uri"),
        ("const it = document.createElement('style'); it.textContent = '* {color: red}';", "style-src"),
        ("const it = document.createElement('iframe'); it.src = 'data:text/html,x';", "default-src"),
        (
            "const it = document.createElement('div'); it.setAttribute('onclick', 'window.hacked = 9');",
            "script-src",
        ),
    ],
)
def test_injected_html_can_do_nothing(page: Page, reports: dict[str, Path], attempt: str, refusal: str) -> None:
    page.open(reports["run"])
    page.run(f"{{ {attempt} document.body.append(it); it.click?.(); }}")
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert [text for text in page.errors if refusal in text], page.errors
    page.errors.clear()
    page.requests[:] = [address for address in page.requests if address.startswith("file:")]


def test_benchmarks_have_a_table_of_their_own(page: Page, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "solved", benchmarks=["toxigen", "gsm8k"])
    page.open(folder / runs.PAGE)
    rows = "[...document.querySelectorAll('#benchmarks tr')]"
    assert page.run(f"{rows}.map((row) => [...row.children].map((cell) => cell.textContent))") == [
        ["model", "toxigen\nacc", "gsm8k\nexact_match,strict-match"],
        ["reference", "0.750 ± 0.125", "0.250"],
        ["uniform", "0.750 ± 0.125", "0.250"],
    ]


def test_each_try_of_a_tuned_merge_is_in_a_table(page: Page, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "tuned", merges=[{"method": "linear", "weights": "tuned"}])
    page.open(folder / runs.PAGE)
    rows = "[...document.querySelectorAll('#tunings tbody tr')]"
    assert page.run(f"{rows}.map((row) => [...row.children].map((cell) => cell.innerText))") == [
        ["1", "1.000", "1.000", "0.300", "0.100", "0.300"],
        ["2", "1.000", "0.500", "0.400", "0.100", "0.400"],
        ["3", "1.000", "2.000", "0.100", "0.100", "0.050"],
    ]
    caption = page.run("document.querySelector('#tunings .caption').innerText")
    assert caption == "linear: 3 tries, 30 pairs scored, 1.5 seconds"


def test_the_leaderboard_sorts_by_pointer_and_keyboard(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    number = headers(page).index("worst\nexcess")
    header = f"document.querySelectorAll('#leaderboard thead th')[{number}]"
    models = column(page, 0)
    assert page.run(f"{header}.getAttribute('aria-sort')") == "none"
    page.run(f"{header}.querySelector('button').click()")
    values = [float(value) for value in column(page, number)]
    assert values == sorted(values), "less is better, so the smallest comes first"
    assert page.run(f"{header}.getAttribute('aria-sort')") == "ascending"
    page.run(f"{header}.querySelector('button').focus()")
    page.press("Enter")
    assert page.run(f"{header}.getAttribute('aria-sort')") == "descending"
    assert [float(value) for value in column(page, number)] == values[::-1]
    assert sorted(column(page, 0)) == sorted(models)

    accuracy = headers(page).index("worst\naccuracy")
    page.run(f"document.querySelectorAll('#leaderboard thead th button')[{accuracy}].click()")
    *values, without_preference = column(page, accuracy)
    assert [float(value) for value in values] == sorted(map(float, values), reverse=True)
    assert without_preference == "–", "the reference, which is last"  # noqa: RUF001


def test_the_best_is_bold_and_the_worst_task_named(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    number = headers(page).index("worst\nexcess")
    bold = f"[...document.querySelectorAll('#leaderboard tbody td:nth-child({number + 1}) b')]"
    assert page.run(f"{bold}.map((cell) => cell.closest('tr').firstChild.textContent)") == ["ama-r"]
    assert page.run(f"{bold}[0].parentNode.querySelector('small').textContent") in ("alpha", "beta")
    choose(page, "#leaderboard", "gap")
    assert headers(page) == ["model", "family", "alpha", "beta"]
    rows = "[...document.querySelectorAll('#leaderboard tbody tr')]"
    assert set(page.run(f"{rows}.map((row) => row.querySelectorAll('.worst').length)")) == {1}


def test_the_top_names_base_model_date_project_and_machine(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    titles = page.run("[...document.querySelectorAll('.origin dt')].map((title) => title.textContent)")
    assert titles == ["Base model", "Finished", "Project", "Trained on"]
    texts = page.run("[...document.querySelectorAll('.origin dd')].map((text) => text.textContent)")
    assert texts[0] == f"{HOSTILE}, commit {'c' * 12}"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", texts[1])
    assert texts[2].startswith("AutoMixAlign ")
    assert texts[3] == HOSTILE


def test_answers_are_side_by_side_with_their_marks(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    assert "No answers were generated for beta" in page.run("document.querySelector('#examples').innerText")
    example = "document.querySelector('#examples .example')"
    assert HOSTILE in page.run(f"{example}.querySelector('.messages').textContent")
    cards = page.run(
        f"[...{example}.querySelectorAll('.answer')]"
        ".map((card) => [...card.querySelectorAll('span:not(:has(span)), .words')])"
        ".map((parts) => parts.map((part) => part.textContent.trim()))"
    )
    assert cards[0] == ["expected", "42"]
    answers = {name: (mark, text) for name, mark, text in cards[1:]}
    assert answers["uniform"] == ("✓ right", f"{HOSTILE} of uniform")
    assert answers["standard"] == ("✗ wrong", f"{HOSTILE} of standard")
    assert list(answers) == column(page, 0), "every model, in the order of the leaderboard"


def test_the_drift_is_shown_for_each_model_and_task(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    rows = "[...document.querySelectorAll('#tasks tbody tr')]"
    cells = page.run(f"{rows}.map((row) => [...row.children].map((cell) => cell.firstChild.textContent))")
    assert ["ama-r", "-1.500", "0.500"] in cells
    assert "reference" not in [row[0] for row in cells], "it does not move"


def test_differences_to_the_baseline_have_intervals(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    charts = "[...document.querySelectorAll('#tasks figure')]"
    titles = page.run(f"{charts}.map((chart) => chart.querySelector('figcaption').textContent)")
    assert titles == ["alpha", "beta", "each model's worst task", "alpha", "beta"]
    rows = f"[...{charts}[3].querySelectorAll('.point-row')]"
    assert page.run(f"{rows}.map((row) => row.querySelector('.name').textContent)") == [
        "standard",
        "ama-r",
        "linear",
    ], "the baseline itself has no difference"
    assert page.run(f"{rows}[0].className") == "point-row wrong", "its interval is above 0"
    assert page.run(f"{rows}[1].className") == "point-row right"
    text = page.run(f"{rows}[0].querySelector('.value').textContent")
    assert re.fullmatch(r"\+0\.\d{3}\+0\.\d{3} to \+0\.\d{3}", text)
    choose(page, "#tasks", "pass_rate")
    titles = page.run(f"{charts}.map((chart) => chart.querySelector('figcaption').textContent)")
    assert titles == ["alpha", "each model's worst task", "alpha"], "beta has no verifier"


def choose(page: Page, where: str, value: str) -> None:
    select = f"document.querySelector('{where} select')"
    page.run(f"{select}.value = {value!r}; {select}.dispatchEvent(new Event('change'))")


def readouts(page: Page) -> list[str]:
    return list(page.run("[...document.querySelectorAll('#trajectories .readout')].map((t) => t.textContent)"))


def test_pointer_and_arrow_keys_select_a_step(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    assert page.run("document.querySelector('#trajectories select').value") == "ama-r", "its weights change"
    assert readouts(page)[0] == "step 40alpha 0.900beta 0.100"
    box: dict[str, Any] = page.run(
        "(() => { const svg = document.querySelector('#trajectories svg'); svg.scrollIntoView();"
        " const box = svg.getBoundingClientRect(); return {x: box.x, y: box.y, w: box.width}; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 46, y=box["y"] + 50)
    assert [text.split("alpha")[0] for text in readouts(page)] == ["step 1", "step 1"], (
        "both charts show the same step"
    )
    page.run("document.querySelector('#trajectories svg').focus()")
    page.press("ArrowRight")
    assert readouts(page)[0] == "step 2alpha 0.520beta 0.480"
    page.press("Home")
    assert readouts(page)[0].startswith("step 1alpha")
    page.press("ArrowLeft")
    assert readouts(page)[0].startswith("step 1alpha"), "the first step has no step before it"


def test_methods_can_be_selected_and_tasks_hidden(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    choose(page, "#trajectories", "uniform")
    assert readouts(page)[0] == "step 40alpha 0.500beta 0.500"
    page.run("document.querySelector('#trajectories .toggle').click()")
    assert page.run("document.querySelector('#trajectories .toggle').getAttribute('aria-pressed')") == "false"
    assert readouts(page)[0] == "step 40beta 0.500"
    choose(page, "#trajectories", "")
    assert page.run("document.querySelectorAll('#trajectories svg').length") == 6
    choose(page, "#curves", "specialist-beta")
    assert page.run("document.querySelectorAll('#curves svg').length") == 3, "a specialist has no clipped pairs"


def test_validations_mark_the_step_of_the_model(page: Page, tmp_path: Path) -> None:
    training = {"batch_size": 4, "learning_rate": 0.1, "validate_every": 10, "keep": "best"}
    page.open(write_run(tmp_path / "run", training=training) / runs.PAGE)
    readout = "document.querySelectorAll('#validation .readout')"
    assert page.run(f"{readout}[0].textContent") == "step 40standard 0.800uniform 0.600ama-r 0.550"
    assert page.run(f"{readout}[1].textContent") == "step 40alpha 0.800beta 0.800"
    marks = (
        "[...document.querySelectorAll('#validation svg')].map((svg) => svg.querySelectorAll('.kept').length)"
    )
    assert page.run(marks) == [0, 1, 1], "the gap and the loss of one model"
    last = "document.querySelector('#validation tbody tr:last-child')"
    row = page.run(f"[...{last}.children].map((cell) => cell.textContent)")
    assert row == ["ama-r", "20", "0.150worst gap", "0.550worst gap"]
    page.screenshot(tmp_path / "validation.png")


def test_the_keyboard_reaches_every_element(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"])
    reached = set()
    for _ in range(90):
        page.press("Tab")
        reached.add(page.run("document.activeElement.tagName.toLowerCase()"))
    assert {"a", "select", "button", "svg", "summary", "div"} <= reached


def test_the_comparison_shows_each_model_and_the_baseline(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["comparison"])
    rows = "[...document.querySelectorAll('#models tbody tr')]"
    texts = page.run(f"{rows}.map((row) => [...row.children].map((cell) => cell.textContent))")
    cells = {row[0]: row[1:] for row in texts}
    assert cells["uniform"][2:5] == ["–", "–", "–"]  # noqa: RUF001  the page's sign for a missing number
    assert cells["linear"][4] == "0/2"
    assert " to " in cells["ama-r"][3]


def test_a_grid_shows_its_points_and_the_chosen_one(
    page: Page, reports: dict[str, Path], tmp_path: Path
) -> None:
    facts = files.read_json(reports["run"].with_name("data.json"))
    values = [("a", {"eta": 0.1}, 0.3, 0.1), ("b", {"eta": 0.2}, 0.2, 0.4)]
    points = [dict(zip(("model", "values", "validation", "test"), each, strict=True)) for each in values]
    facts["grids"] = [{"name": HOSTILE, "keys": ["eta"], "chosen": "b", "points": points}]
    report_page.write(facts, tmp_path / "index.html")
    page.open(tmp_path / "index.html")
    rows = "[...document.querySelectorAll('#grids tbody tr')].map((row) => row.innerText)"
    assert page.run(rows) == ["a\t0.1\t+0.300\t+0.100", "b (chosen)\t0.2\t+0.200\t+0.400"]
    assert "The test split had no part in the choice" in page.run("document.querySelector('#grids').innerText")
