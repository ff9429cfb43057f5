"""The picture of a chain: every model once, with its figures, none over another."""

from xml.etree import ElementTree

from lightgpt2.report.chain import chain_picture
from lightgpt2.report.rows import models
from tests.report.chains import Entry, chain, entry

SVG = "{http://www.w3.org/2000/svg}"


def boxes(ledgers: dict[str, list[Entry]]) -> dict[tuple[float, float], list[str]]:
    """The texts of each box by its corner."""
    picture = chain_picture(models(ledgers))
    assert picture is not None
    found: dict[tuple[float, float], list[str]] = {}
    for each in ElementTree.fromstring(picture.svg):
        if each.tag == f"{SVG}rect":
            corner = float(each.attrib["x"]), float(each.attrib["y"])
            assert corner not in found
            found[corner] = []
        if each.tag == f"{SVG}text":
            found[corner].append(str(each.text))
    return found


def test_each_model_stands_behind_the_one_it_comes_from_with_its_figures() -> None:
    found = boxes(chain())
    assert [texts[0] for texts in found.values()] == [
        "baseline",
        "distilled",
        "adapted",
        "pruned",
        "tuned",
        "int8",
        "nf4",
    ]
    assert found[min(found)] == ["baseline", "perplexity 44.22", "124.44 M parameters", "497.8 MB"]
    across = [x for x, _ in found]
    assert across == sorted(across)
    assert across[-1] == across[-2], "two copies of one model stand one below the other"
    assert len({y for _, y in [*found][:5]}) == 1, "a chain without branches is a straight line"


def test_branches_do_not_cover_each_other() -> None:
    first = entry("q/first", 50.0)
    ends = {name: entry(f"q/{name}", 40.0 + i, before=first) for i, name in enumerate("abc")}
    found = boxes({f"checkpoints/q/{name}/model": [first, end] for name, end in ends.items()})
    assert [texts[0] for texts in found.values()] == ["first", "a", "b", "c"]


def test_one_model_is_no_chain() -> None:
    assert chain_picture(models({"checkpoints/q/first/model": [entry("q/first", 50.0)]})) is None
