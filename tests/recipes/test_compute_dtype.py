"""What each recipe computes in, as its dry run says it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from loopax.recipe import find
from loopax.recipes import bert, images

pytestmark = pytest.mark.usefixtures("brief_estimates")

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"


@pytest.fixture
def configs(tiny_config, tmp_path):
    texts = tmp_path / "texts.csv"
    verdicts = ["good", "bad"] * 20
    rows = [f"a {verdict} film {count},{verdict}" for count, verdict in enumerate(verdicts)]
    texts.write_text("\n".join(["text,label", *rows]))
    return {
        "vae": tiny_config,
        "images": images.ImagesConfig(data=tiny_config.data, batch_size=6, widths=(8,)),
        "bert": bert.FineTuneConfig(data=str(texts), model=str(TINY), batch_size=8, remat="dots"),
    }


@pytest.mark.parametrize("name", ["vae", "images", "bert"])
def test_the_network_of_a_step_computes_in_bfloat16(name, configs):
    config = replace(configs[name], compute_dtype="bfloat16")
    (line,) = re.findall("computing .*", "\n".join(find(name).costs(config)))
    share = int(re.search(r"bfloat16.* \((\d+)% of all products\)", line)[1])
    assert share >= 95  # the head of BERT is float32
    assert ("remat dots" in line) == (name == "bert")
