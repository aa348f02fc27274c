import copy
import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch

from mist_loss import MIST, MISTCriterion, cli, estimate_mi
from mist_loss import estimate as estimate_module
from mist_loss.estimate import interval
from mist_loss.model import quantiles, weights
from mist_loss.tables import read_columns

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def weight_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save_weights(model, path, {"command": "test"})
    return path


@pytest.fixture
def registered(weight_file, monkeypatch):
    """The small estimator under a registered name, with an empty cache before and after."""
    monkeypatch.setitem(weights.REGISTRY, "small", (weight_file.name, weights.sha256(weight_file)))
    monkeypatch.setattr(weights, "pretrained_folder", lambda: weight_file.parent)
    estimate_module._registered.cache_clear()
    yield "small"
    estimate_module._registered.cache_clear()


def test_one_set_and_a_batch(model):
    x, y = torch.randn(3, 50, 2), torch.randn(3, 50, 5)
    batch = estimate_mi(x, y, model=model)
    assert [t.shape for t in batch] == [(3,)] * 3
    for i in range(3):
        one = estimate_mi(x[i], y[i], model=model)
        assert [t.shape for t in one] == [()] * 3
        torch.testing.assert_close(torch.stack(list(one)), torch.stack([t[i] for t in batch]))


def test_value_and_interval_come_from_the_predictive_distribution(model):
    x, y = torch.randn(50, 2), torch.randn(50, 3)
    knots = model(x[None], y[None])[0]
    result = estimate_mi(x, y, level=0.8, model=model)
    torch.testing.assert_close(result.value, quantiles.mean(knots))
    torch.testing.assert_close(result.low, quantiles.quantile(knots, 0.1))
    torch.testing.assert_close(result.high, quantiles.quantile(knots, 0.9))
    assert result.low < result.value < result.high
    wider = estimate_mi(x, y, level=0.99, model=model)
    assert wider.low < result.low
    assert wider.high > result.high


def test_an_interval_that_begins_next_to_zero_begins_at_zero():
    knots = torch.tensor([0.004, 0.006])[:, None] + torch.linspace(-0.0001, 0.0001, quantiles.KNOTS)
    value, low, high = interval(knots, 0.9)
    torch.testing.assert_close(value, torch.tensor([0.004, 0.006]))
    torch.testing.assert_close(low, torch.tensor([0.0, 0.006]), atol=1e-4, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.004, 0.006]), atol=1e-4, rtol=0)


def test_independent_sets_seldom_have_an_interval_above_zero():
    torch.manual_seed(12)
    low = torch.cat([estimate_mi(torch.randn(100, n, d), torch.randn(100, n, d)).low for n, d in ((32, 4), (64, 8))])
    assert (low > 0).float().mean() < 0.1  # a twentieth is meant


def test_deterministic_and_without_a_graph(model):
    x, y = torch.randn(50, 2), torch.randn(50, 3)
    first, second = (estimate_mi(x, y, model=model) for _ in range(2))
    assert first == second
    assert not any(t.requires_grad for t in first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_in_the_dtype_of_the_input(model, dtype):
    x, y = torch.randn(50, 2).to(dtype).requires_grad_(), torch.randn(50, 3)
    result = estimate_mi(x, y, model=model)
    assert result.value.dtype == torch.float32
    for part in result:
        (gradient,) = torch.autograd.grad(part, x, retain_graph=True)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
    with torch.no_grad():
        assert not estimate_mi(x, y, model=model).value.requires_grad


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_numpy(model, dtype):
    x, y = (np.random.default_rng(0).normal(size=(50, d)).astype(dtype) for d in (2, 3))
    x.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = estimate_mi(x, y[:, ::-1], model=model)
    native = torch.tensor(x.astype("f8")), torch.tensor(y[:, ::-1].astype("f8"))
    torch.testing.assert_close(result.value, estimate_mi(*native, model=model).value, atol=1e-3, rtol=0)


def test_names_are_loaded_once_and_files_anew(registered, weight_file, model, monkeypatch):
    x, y = torch.randn(50, 2), torch.randn(50, 3)
    loaded = []
    load = weights.load

    def spy(name):
        loaded.append(str(name))
        return load(name)

    monkeypatch.setattr(weights, "load", spy)
    values = [estimate_mi(x, y, model=name).value for name in (registered, registered, weight_file, weight_file)]
    assert loaded == [registered, str(weight_file), str(weight_file)]
    assert all(torch.equal(value, estimate_mi(x, y, model=model).value) for value in values)


def test_cached_weights_take_no_gradient_and_stay_where_they_are(registered):
    cpu = estimate_module._registered(registered, torch.device("cpu"))
    meta = estimate_module._registered(registered, torch.device("meta"))
    assert cpu.vector_mean.device.type == "cpu"
    assert meta.vector_mean.device.type == "meta"
    assert not any(p.requires_grad for p in cpu.parameters())


def test_first_use_in_inference_mode_does_not_spoil_the_cache(registered):
    x, y = torch.randn(50, 2), torch.randn(50, 3)
    with torch.inference_mode():
        inside = estimate_mi(x, y, model=registered)
    outside = estimate_mi(x.clone().requires_grad_(), y, model=registered)
    outside.value.backward()
    assert torch.equal(inside.value, outside.value)


def test_wide_input_is_projected_with_a_warning(model):
    x, y = torch.randn(50, 20), torch.randn(50, 3)
    with pytest.warns(UserWarning, match=r"x has 20 dimensions, the model reads at most 8: projected on 6 \(.*'pca'"):
        first = estimate_mi(x, y, model=model)
    with pytest.warns(UserWarning, match="'random'"):
        second = estimate_mi(x, y, model=model, projection="random")
    assert first.value != second.value
    with pytest.raises(ValueError, match="choose another projection"):
        estimate_mi(x, y, model=model, projection="none")


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90, float("nan"), "0.9", None])
def test_level_is_checked(model, level):
    with pytest.raises(ValueError, match="expected level as a number strictly between 0 and 1"):
        estimate_mi(torch.randn(50, 2), torch.randn(50, 3), level=level, model=model)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no-such-model", "expected one of"), (None, "expected the name, path or address"), (3, "or a MIST, got int")],
)
def test_unknown_models(name, message):
    with pytest.raises(ValueError, match=message):
        estimate_mi(torch.randn(50, 2), torch.randn(50, 3), model=name)


def test_unknown_projection(model):
    with pytest.raises(
        ValueError, match="expected projection to be one of 'pca', 'random', 'sliced', 'none', got 'umap'"
    ):
        estimate_mi(torch.randn(50, 2), torch.randn(50, 3), model=model, projection="umap")


@pytest.mark.parametrize("dtype", [np.int64, bool, complex, object, "U3"])
def test_arrays_of_other_dtypes(model, dtype):
    with pytest.raises(ValueError, match="float"):
        estimate_mi(np.ones((50, 2)).astype(dtype), np.ones((50, 2)), model=model)


def test_lists_are_refused(model):
    with pytest.raises(ValueError, match=r"expected x to be a tensor, got list: convert it with torch\.as_tensor"):
        estimate_mi([[1.0]] * 50, torch.randn(50, 2), model=model)  # type: ignore[arg-type]


# files


ROWS = np.random.default_rng(0).normal(size=(40, 4))


def write(folder, suffix):
    path = folder / f"rows{suffix}"
    if suffix == ".csv":
        path.write_text("a,b, c ,d\n" + "\n".join(",".join(map(repr, row)) for row in ROWS.tolist()) + "\n")
    elif suffix == ".npy":
        np.save(path, ROWS)
    elif suffix == ".npz":
        np.savez(path, a=ROWS[:, 0], bc=ROWS[:, 1:3], d=ROWS[:, 3:])
    else:
        pytest.importorskip("pyarrow", exc_type=ImportError)
        pytest.importorskip("pandas").DataFrame(ROWS, columns=list("abcd")).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("suffix", "x", "y"),
    [
        (".csv", "a,d", "b,c"),
        (".csv", "a, d", "1:3"),
        (".npy", "0,3", "1:3"),
        (".npz", "a,d", "bc"),
        (".parquet", "a,d", "1:3"),
    ],
)
def test_read_columns(tmp_path, suffix, x, y):
    first, second = read_columns(write(tmp_path, suffix), x, y)
    np.testing.assert_array_equal(first, ROWS[:, [0, 3]])
    np.testing.assert_array_equal(second, ROWS[:, 1:3])
    assert first.dtype == np.float64


def test_open_ranges(tmp_path):
    first, second = read_columns(write(tmp_path, ".npy"), ":1", "1:")
    assert (first.shape, second.shape) == ((40, 1), (40, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "expected 2 cells in row 2"),
        ("a,b\n1,2\n3,x\n", "expected numbers in column 'b': could not convert string to float: 'x'"),
        ("a,b\n1,2\n3,\n", "expected numbers in column 'b'"),
        ("a,a\n1,2\n", "expected different column names"),
        ("a,c\n1,2\n", "expected a column or a range FIRST:END of 2 columns, got 'b'; there are: a, c"),
        ("", "it is empty"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_columns(path, "a", "b")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_columns(tmp_path / "none.csv", "a")
    with pytest.raises(ValueError, match=r"expected a file ending in \.csv, \.npy, \.npz, \.parquet"):
        read_columns(tmp_path / "rows.mat", "a")
    np.save(tmp_path / "flat.npy", np.ones(5))
    with pytest.raises(ValueError, match=r"expected an array \(n, d\)"):
        read_columns(tmp_path / "flat.npy", "0")
    np.savez(tmp_path / "lengths.npz", a=np.ones(5), b=np.ones(6), c=np.ones((5, 2, 2)))
    with pytest.raises(ValueError, match="'a': 5, 'b': 6"):
        read_columns(tmp_path / "lengths.npz", "a,b")
    with pytest.raises(ValueError, match="flatten each row"):
        read_columns(tmp_path / "lengths.npz", "c")


def test_parquet_without_pandas_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mist-loss\[tables\]'"):
        read_columns(tmp_path / "rows.parquet", "a")


def run(argv, capsys):
    code = cli.main(["estimate", *map(str, argv)])
    return code, *capsys.readouterr()


def test_command(tmp_path, weight_file, capsys):
    argv = [write(tmp_path, ".csv"), "--x", "a,b", "--y", "c", "--model", weight_file, "--level", "0.8"]
    code, out, _ = run(argv, capsys)
    expected = estimate_mi(ROWS[:, :2], ROWS[:, 2:3], level=0.8, model=MIST.from_pretrained(weight_file))
    assert code == 0
    assert out.startswith(
        f"I(x; y) = {expected.value:.3f} nats, 80% interval {expected.low:.3f} to {expected.high:.3f}\n"
    )
    code, out, _ = run([*argv, "--json"], capsys)
    answer = json.loads(out)
    assert [answer["value"], answer["low"], answer["high"]] == pytest.approx([float(t) for t in expected])
    assert {k: answer[k] for k in ("unit", "level", "rows", "dims")} == {
        "unit": "nats",
        "level": 0.8,
        "rows": 40,
        "dims": [2, 1],
    }


def test_command_errors_go_to_stderr(tmp_path, weight_file, capsys):
    code, out, err = run([write(tmp_path, ".csv"), "--x", "a", "--y", "z", "--model", weight_file], capsys)
    assert (code, out) == (2, "")
    assert "got 'z'" in err


def test_nothing_is_shared_with_a_constant(model):
    x, y = torch.randn(3, 50, 4), torch.randn(3, 50, 2)
    y[1] = 7.0
    result = estimate_mi(x, y, model=model)
    assert result.value[1] == result.low[1] == result.high[1] == 0
    assert result.value[0] > 0
    assert estimate_mi(torch.ones(50, 1), torch.randn(50, 3), model=model).value == 0


def test_a_label_shares_no_more_than_its_entropy(model):
    label = torch.arange(200).remainder(4)
    x = 20 * torch.nn.functional.one_hot(label, 4).float()
    result = estimate_mi(x, x + 0.01 * torch.randn(200, 4), model=model)
    assert result.low <= result.value <= result.high <= math.log(4) + 1e-6


def test_two_labels_are_counted_unless_gradients_are_wanted(model):
    x = torch.arange(400).remainder(2).float()[:, None]
    assert estimate_mi(x, 1 - x, model=model).value.item() == pytest.approx(math.log(2), abs=0.01)
    y = (1 - x).requires_grad_()
    assert estimate_mi(x, y, model=model).value.requires_grad
    two = estimate_mi(torch.stack([x, x]), torch.stack([x, torch.randn(400, 1)]), model=model)
    assert two.value[0].item() == pytest.approx(math.log(2), abs=0.01)


def test_sets_read_one_after_the_other_are_read_alike(model, monkeypatch):
    x, y = torch.randn(5, 30, 2), torch.randn(5, 30, 3)
    read = []
    with model.register_forward_hook(lambda module, sides, knots: read.append(len(knots))):
        together = estimate_mi(x, y, model=model)
        monkeypatch.setattr(estimate_module, "ROWS_AT_ONCE", 60)
        apart = estimate_mi(x, y, model=model)
    assert read == [5, 2, 2, 1]
    torch.testing.assert_close(tuple(apart), tuple(together))


@pytest.mark.slow
def test_a_compiled_estimator_says_the_same(model):
    compiled = copy.deepcopy(model)
    compiled.compile(backend="eager", fullgraph=True)
    x, y = torch.randn(2, 3, 60, 2)
    for found, expected in zip(estimate_mi(x, y, model=compiled), estimate_mi(x, y, model=model), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_criterion_or_a_mask_is_explained(model):
    x, y = np.random.default_rng(0).normal(size=(2, 40, 2))
    with pytest.raises(ValueError, match=r"give criterion\.model"):
        estimate_mi(x, y, model=MISTCriterion(model))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a mask"):
        estimate_mi(np.ma.masked_array(x, mask=x > 1), y, model=model)


def test_whatever_becomes_an_array_is_taken(model):
    class Frame:  # as a data frame, or an array of another library
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values

    x = np.random.default_rng(0).normal(size=(40, 2))
    expected = estimate_mi(x, x[:, :1], model=model)
    assert estimate_mi(Frame(x), x[:, :1], model=model).value == expected.value  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype object"):
        estimate_mi(Frame(x.astype(object)), x, model=model)  # type: ignore[arg-type]


def test_the_folder_of_a_run_is_told_from_one_of_weights(tmp_path, weight_file):
    (tmp_path / "weights.safetensors").write_bytes(weight_file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"give .*weights\.safetensors"):
        MIST.from_pretrained(tmp_path)


def test_levels_next_to_one_are_finite(model):
    torch.manual_seed(0)
    x = torch.randn(2, 40, 2)
    y = x + torch.randn_like(x)
    high = [estimate_mi(x, y, level, model).high for level in (0.9, 1 - 1e-6, 1 - 1e-15)]
    assert all(bound.isfinite().all() for bound in high)
    assert (high[0] < high[1]).all()
    assert (high[1] < high[2]).all()


@pytest.mark.parametrize("level", [0.01, 0.3, 0.5, 0.9])
def test_an_interval_of_any_level_holds_the_estimate(level):
    torch.manual_seed(0)
    x = torch.randn(20, 64, 3)
    for y in (torch.randn(20, 64, 3), x + torch.randn(20, 64, 3)):
        value, low, high = estimate_mi(x, y, level=level)
        assert ((low <= value) & (value <= high)).all()
