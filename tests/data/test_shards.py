import pytest

from loopax.data.shards import find_shards


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder):
    return {
        part: [str(file.relative_to(folder)) for file in files]
        for part, files in find_shards(folder).items()
    }


TRAIN = [f"train-{index:05}-of-00003.parquet" for index in range(3)]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ([], {}),
        (["a.png", "readme.md"], {}),
        (["part-1.parquet", "part-0.parquet"], {"": ["part-0.parquet", "part-1.parquet"]}),
        (TRAIN[::-1], {"": TRAIN}),
        (["validation-00000-of-00001.parquet"], {"": ["validation-00000-of-00001.parquet"]}),
        (["test.parquet", *TRAIN], {"test": ["test.parquet"], "train": TRAIN}),
        (
            ["test_1.parquet", "valid.parquet", "Train_1.parquet", "train_2.parquet"],
            {
                "train": ["Train_1.parquet", "train_2.parquet"],
                "test": ["test_1.parquet"],
                "valid": ["valid.parquet"],
            },
        ),
        (["trains.parquet", "testing.parquet"], {"": ["testing.parquet", "trains.parquet"]}),
        (
            ["README.md", "data/train.parquet", "data/test.parquet"],
            {"test": ["data/test.parquet"], "train": ["data/train.parquet"]},
        ),
        (["mnist/train.parquet", "other/notes.txt"], {"": ["mnist/train.parquet"]}),
        (
            ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
            {"train": ["train/0000.parquet", "train/0001.parquet"], "test": ["test/0000.parquet"]},
        ),
        (
            [".cache/x.parquet", "__MACOSX/x.parquet", "data/.x.parquet", "data/y.parquet"],
            {"": ["data/y.parquet"]},
        ),
        (
            ["train-00000-of-00002-af01.parquet", "train-00001-of-00002-b3.parquet"],
            {"": ["train-00000-of-00002-af01.parquet", "train-00001-of-00002-b3.parquet"]},
        ),
    ],
)
def test_files_are_put_together(tmp_path, names, parts):
    assert found(touch(tmp_path, *names)) == parts


def test_a_folder_named_like_a_file_may_hold_the_files(tmp_path):
    assert found(touch(tmp_path, "x.parquet/part-0.parquet")) == {"": ["x.parquet/part-0.parquet"]}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train-00000-of-00002.parquet"], ["0 files 00001-of-00002", "train-00000"]),
        ([*TRAIN[1:], "test.parquet"], ["0 files 00000-of-00003"]),
        ([*TRAIN, "test-00001-of-00002.parquet"], ["0 files 00000-of-00002"]),
        ([*TRAIN, "train-00000-of-00003-1f.parquet"], ["2 files 00000-of-00003", "one of each"]),
        ([*TRAIN, "train-00000-of-00002.parquet"], ["0 files 00001-of-00002"]),
        (["train.parquet", "more.parquet"], ["'more.parquet' beside 'train.parquet'"]),
        (["test.parquet", "val.parquet"], ["'test.parquet' beside 'val.parquet'", "train"]),
        (["a/x.parquet", "b/x.parquet"], ["the folders 'a' and 'b'", "one that is meant"]),
        (["a/x.parquet", "train/x.parquet"], ["the folders 'a' and 'train'"]),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, refuses, names, parts):
    with refuses(tmp_path.name, *parts):
        find_shards(touch(tmp_path, *names))
