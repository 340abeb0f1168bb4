"""The zoo's table: its numbers against known ones."""

import json
import pathlib
import types

import cv2
import pytest

from experiments import common, tables
from fcrn_jax import cpu, models


def test_work_and_parameters_of_resnet_50(monkeypatch):
  """3.86e9 products at 224 (He et al.: 3.8e9), those with padding counted.

  23,508,032 parameters without its classifier, then 2048 x 21 + 21 of ours.
  The form that computes the convolutions here changes nothing.
  """
  monkeypatch.setattr(cpu, "prepared", True)
  params, flops = common.network_cost("fcrn50_s32_k1_d1", 512)
  assert params == 23_508_032 + 2048 * 21 + 21
  expected = 2 * 3.86e9 * (512 / 224) ** 2
  assert flops == pytest.approx(expected, rel=1e-3)


def test_rows_of_the_zoo(monkeypatch):
  monkeypatch.setattr(models, "list_models", lambda: ["fcrn50_s16_k3_d6"])
  header, row = tables.zoo(64)
  assert row[:2] == ("fcrn50_s16_k3_d6", "208")
  assert row[4:] == ("69.09 (1); 66.41 (3)", "-")
  lines = common.columns([header, row]).splitlines()
  assert lines[0].index("Mparams") == lines[1].index("23.90")


def test_a_file_of_something_else_is_named(tmp_path):
  for text, words in (
    ("[1]", "none of experiments"), ('{"rows": []}', "none of experiments"),
    ("{", "not valid JSON"),
  ):  # fmt: skip
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.json is {words}"):
      tables.results(tmp_path)


def test_other_results_leave_the_docs_alone(tmp_path, monkeypatch, capsys):
  drawn = []
  monkeypatch.setattr(tables, "plot_oracle", lambda *given: drawn.append(given))
  monkeypatch.setattr(tables, "results", lambda folder: "")
  monkeypatch.setattr(common, "start", lambda: None)
  monkeypatch.setattr(tables, "_WHAT", types.SimpleNamespace(value="results"))
  path = tmp_path / "oracle_x.json"
  path.touch()
  for default, folder in (("other", tmp_path), (str(tmp_path), "docs")):
    given = types.SimpleNamespace(value=str(tmp_path), default=default)
    monkeypatch.setattr(tables, "_RESULTS", given)
    tables.main()
    assert drawn.pop() == (path, pathlib.Path(folder) / "oracle_x.png")


def test_results_become_tables(tmp_path):
  rows = [
    {"data": "a", "stride": stride, "ap_r_0.5": 1 / stride, "ap_r_0.7": 0.5}
    for stride in (1, 2)
  ]
  found = {
    "command": "python -m x", "hardware": "H", "date": "2026-01-01",
    "versions": {"jax": "1"}, "rows": [*rows, {"data": "b", "other": 7}],
  }  # fmt: skip
  (tmp_path / "oracle.json").write_text(json.dumps(found))
  text = tables.results(tmp_path)
  assert "| data | stride | ap_r_0.5 | ap_r_0.7 | other |" in text
  assert "| a | 2 | 0.5 | 0.5 |  |" in text
  assert "| b |  |  |  | 7 |" in text
  assert "`python -m x`" in text
  assert "H; jax 1; 2026-01-01" in text
  found["rows"] = rows
  (tmp_path / "oracle.json").write_text(json.dumps(found))
  tables.plot_oracle(tmp_path / "oracle.json", tmp_path / "docs" / "o.png")
  assert cv2.imread(str(tmp_path / "docs" / "o.png")) is not None


def test_networks_that_differ_by_dilation_are_counted_once(monkeypatch):
  counted = []

  def cost(name, size):
    counted.append(name)
    return 1_000_000, 2e9

  names = ["fcrn50_s8_k5_d6", "fcrn50_s8_k5_d12", "fcrn50_s8_k5_d18"]
  monkeypatch.setattr(models, "list_models", lambda: names)
  monkeypatch.setattr(common, "network_cost", cost)
  header, _, row, _ = tables.zoo(64)
  assert counted == names[:1] and row[2:4] == ("1.00", "2.0")
  assert header[5] == "paper: AP^r at 0.5/0.7 (table)"
  assert row[5].startswith("57.2/40.5 (6); 58.7/42.0 (6 512 pixels)")
