"""Tables and folders that people have, and what is wrong with some of them."""

import os
import unicodedata

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, LatentPairs, read_pairs, split_items

ROWS = [("a.jpg", "a dog", "train"), ("b/c.PNG", "two birds, red", "test"), ("a.jpg", "the dog", "train")]


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def csv_text(rows=ROWS, header="image,text,split", separator=","):
    quoted = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    return "\n".join([header, *quoted]) + "\n"


TABLES = {
    "plain.csv": csv_text(),
    "bom.csv": "\ufeff" + csv_text(),
    "windows.csv": csv_text().replace("\n", "\r\n").replace("b/c", "b\\c"),
    "blank lines.csv": csv_text().replace("\n", "\n\n"),
    "spaces.csv": csv_text(header=" Image , TEXT,split").replace("a.jpg", " ./a.jpg "),
    "tabs.tsv": csv_text(header="image\ttext\tsplit", separator="\t"),
    "other columns.csv": csv_text([(*row, "x") for row in ROWS], "file_name,text,split,licence"),
    "lines.jsonl": '{"image": "a.jpg", "text": ["a dog", "the dog"], "split": "train"}\n'
    '\n{"image": "b/c.PNG", "text": "two birds, red", "split": "test", "licence": null}\r\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    pairs = read_pairs(write(tmp_path / name, TABLES[name]))
    assert (pairs.media, pairs.items, pairs.splits) == ("image", ["a.jpg", "b/c.PNG"], ["train", "test"])
    assert sorted(pairs.captions) == [(0, "a dog"), (0, "the dog"), (1, "two birds, red")]
    assert len(pairs) == 2
    assert pairs.fields("image") == (["a.jpg", "b/c.PNG"], [tmp_path / "a.jpg", tmp_path / "b" / "c.PNG"])
    ids, texts = pairs.fields("text")
    assert sorted(zip(ids, texts, strict=True))[0] == ("a.jpg", "a dog") and len(texts) == 3
    with pytest.raises(FuseMixLiteError, match="no field 'audio' in .*there are image, text"):
        pairs.fields("audio")


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl"])
def test_a_folder_with_a_table_in_it(tmp_path, name):
    text = csv_text() if name.endswith("csv") else TABLES["lines.jsonl"]
    write(tmp_path / name, text.replace("image", "file_name"))
    write(tmp_path / "not in the table.jpg", "")
    pairs = read_pairs(tmp_path)
    assert (pairs.source, pairs.folder, pairs.items) == (tmp_path, tmp_path, ["a.jpg", "b/c.PNG"])
    write(tmp_path / "captions.tsv", csv_text())
    with pytest.raises(FuseMixLiteError, match="holds .* and .*: give the one that is meant"):
        read_pairs(tmp_path)


def test_a_folder_of_files_with_texts_beside_them(tmp_path):
    for name in ("b/z.wav", "a.ogg", "c.FLAC", ".hidden.wav", "__MACOSX/a.wav", "notes.md", "a.txt", "b/z.txt"):
        write(tmp_path / name, "")
    write(tmp_path / "a.txt", "\ufeffa bell\r\n\r\n  rain falls \n")
    pairs = read_pairs(tmp_path)
    assert (pairs.media, pairs.items, pairs.splits) == ("audio", ["a.ogg", "b/z.wav", "c.FLAC"], None)
    assert pairs.captions == [(0, "a bell"), (0, "rain falls")]
    write(tmp_path / "p.jpg", "")
    with pytest.raises(FuseMixLiteError, match='holds pictures and sounds: say which with media="image"'):
        read_pairs(tmp_path)
    assert read_pairs(tmp_path, "image").items == ["p.jpg"] and len(read_pairs(tmp_path, media="audio")) == 3


def test_semicolons_as_spreadsheets_write_them(tmp_path):
    write(tmp_path / "pairs.csv", csv_text(header="image;text;split", separator=";"))
    write(tmp_path / "commas.csv", csv_text())
    assert read_pairs(tmp_path / "pairs.csv").captions == read_pairs(tmp_path / "commas.csv").captions


def test_a_table_under_another_name_is_not_passed_over_in_silence(tmp_path):
    write(tmp_path / "good.csv", csv_text())
    write(tmp_path / "a.jpg", "x")
    with pytest.warns(UserWarning, match="good.csv is not read.*give the table itself"):
        read_pairs(tmp_path)


def test_names_and_captions_in_any_script(tmp_path):
    name = "größe/猫.jpg"
    write(tmp_path / name, "x")
    table = read_pairs(write(tmp_path / "captions.csv", csv_text([(name, "eine Katze – 猫", "train")])))
    (tmp_path / "captions.csv").unlink()
    write(tmp_path / "größe" / "猫.txt", "eine Katze – 猫\u2028still this line")
    folder = read_pairs(tmp_path)
    assert table.items == [unicodedata.normalize("NFC", item) for item in folder.items] == [name]
    assert table.paths[0].is_file() and table.captions == [(0, "eine Katze – 猫")]
    assert folder.captions == [(0, "eine Katze – 猫\u2028still this line")]


def test_captions_with_quotes_commas_and_line_ends(tmp_path):
    caption = 'a "red" bird,\nand a dog'
    text = csv_text([("a.jpg", caption.replace('"', '""'), "train"), ("b.jpg", "", "train")])
    assert read_pairs(write(tmp_path / "t.csv", text)).captions == [(0, caption), (1, "")]  # an empty one is kept as it is


def test_media_settles_what_is_meant(tmp_path):
    both = write(tmp_path / "both.csv", "image,audio,text\na.jpg,a.wav,a dog\n")
    assert read_pairs(both, "audio").items == ["a.wav"] and read_pairs(both, media="image").items == ["a.jpg"]
    with pytest.raises(FuseMixLiteError, match="columns image and audio: say which"):
        read_pairs(both)
    odd = write(tmp_path / "odd.csv", "file_name,text\na.xyz,a dog\n")
    assert read_pairs(odd, "image").media == "image"
    with pytest.raises(FuseMixLiteError, match="media = 'video'"):
        read_pairs(odd, "video")


def test_the_id_names_what_latents_depend_on(tmp_path):
    write(tmp_path / "photos" / "a.jpg", "1")
    table = write(tmp_path / "photos" / "pairs.csv", csv_text())
    before = read_pairs(table).id
    assert before == read_pairs(table).id and before.startswith("pairs-")

    def changed(what, text=None):
        read = read_pairs(write(table, text) if text else table)
        assert (read.id != before) == what
        return read

    changed(False, csv_text([(a, b, "val") for a, b, _ in ROWS]))
    changed(True, csv_text([*ROWS, ("a.jpg", "one more", "train")]))
    changed(True, csv_text(ROWS[::-1]))
    changed(True, csv_text().replace("the dog", "the cat"))
    changed(False, csv_text())
    os.utime(tmp_path / "photos" / "a.jpg", ns=(1, 1))
    changed(True)
    before = read_pairs(table).id
    write(tmp_path / "photos" / "a.jpg", "22")
    os.utime(tmp_path / "photos" / "a.jpg", ns=(1, 1))
    changed(True)
    before = read_pairs(table).id
    (tmp_path / "photos" / "a.jpg").unlink()
    changed(True)
    before = read_pairs(table).id
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert read_pairs(tmp_path / "moved" / "pairs.csv").id == before


BAD = {
    "empty.csv": ("", "holds no row"),
    "header only.csv": ("image,text\n", "holds no row"),
    "empty.jsonl": ("\n", "holds no row"),
    "no media column.csv": ("photo,text\na.jpg,x\n", 'no column "image" or "audio" .* first line names photo, text: rename'),
    "no text.csv": ("image,caption\na.jpg,x\n", 'line 2: no column "text"; there are image, caption'),
    "twice.csv": ("image,text,text\na.jpg,x,y\n", "line 1: a column name occurs twice"),
    "comma.csv": ("image,text\na.jpg,a dog, barking\n", "line 2: 3 cells under 2 columns: put quotes"),
    "short.csv": ("image,text\na.jpg,x\nb.jpg\n", "line 3: 1 cells under 2 columns"),
    "quote.csv": ('image,text\na.jpg,"a dog\n', "line 2: .*: check the quotes"),
    "two kinds.csv": ("file_name,text\na.jpg,x\nb.wav,y\n", 'line 3: "b.wav" is no image'),
    "sound as image.csv": ("image,text\nb.wav,y\n", 'line 2: "b.wav" is no image'),
    "suffix.csv": ("file_name,text\na.xyz,x\n", 'line 2: the suffix of "a.xyz" tells neither'),
    "no path.csv": ("image,text\n ,x\n", "line 2: no path"),
    "absolute.csv": ("image,text\n/etc/a.jpg,x\n", 'line 2: "/etc/a.jpg" leaves the folder of the table: put'),
    "drive.csv": ("image,text\nC:\\a.jpg,x\n", "line 2: .* leaves the folder"),
    "above.csv": ("image,text\nb/../../a.jpg,x\n", "line 2: .* leaves the folder"),
    "address.csv": ("image,text\nhttps://x.org/a.jpg,x\n", "line 2: .* is an address: fetch"),
    "two parts.csv": ("image,text,split\na.jpg,x,train\nb.jpg,y,test\na.jpg,z,test\n", 'line 4: "a.jpg" is in part "test"'),
    "no part.csv": ("image,text,split\na.jpg,x,\n", "line 2: split must name a part"),
    "null.csv": (b"image,text\na.jpg,x\nb.jpg,\0\n", "line 3: not UTF-8 text .a NUL byte.: save it as UTF-8"),
    "latin.csv": ("image,text\na.jpg,x\nb.jpg,Größe\n".encode("latin-1"), "line 3: not UTF-8"),
    "utf16.csv": (csv_text().encode("utf-16"), "line 1: not UTF-8"),
    "list.jsonl": ('["a.jpg", "x"]\n', "line 1: no JSON object"),
    "broken.jsonl": ('{"image": "a.jpg", "text": "x"}\n{"image"\n', "line 2: no JSON"),
    "number.jsonl": ('{"image": "a.jpg", "text": 3}\n', "line 1: text must be a caption"),
    "half.jsonl": ('{"image": "a.jpg", "text": "\\ud800"}\n', "line 1: .* holds a character that is not Unicode"),
    "path number.jsonl": ('{"image": 3, "text": "x"}\n', "line 1: no path"),
    "some split.jsonl": (
        '{"image": "a.jpg", "text": "x", "split": "train"}\n{"image": "b.jpg", "text": "x"}\n',
        '"b.jpg" has no split, others have',
    ),
    "sheet.xlsx": ("PK", "is no table that can be read: save it as .csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_named_with_their_line(tmp_path, name):
    text, message = BAD[name]
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        read_pairs(write(tmp_path / name, text))
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(FuseMixLiteError, match="nowhere does not exist: give a folder or a table"):
        read_pairs(tmp_path / "nowhere")
    write(tmp_path / "notes.md", "")
    with pytest.raises(FuseMixLiteError, match="holds no media file .looked for .aif"):
        read_pairs(tmp_path)
    with pytest.raises(FuseMixLiteError, match="holds no image file .looked for .bmp"):
        read_pairs(tmp_path, "image")


def latent_pairs(ids):
    """Item i, called ids[i], is [i]; so is its caption."""
    x = np.arange(len(ids), dtype=np.float32)[:, None]
    return LatentPairs(x, x, item_ids=ids)


def test_items_are_split_by_the_column_even_if_some_are_gone(tmp_path):
    rows = [(f"{i}.jpg", "x", ("train", "test")[i % 2]) for i in range(6)]
    dataset = read_pairs(write(tmp_path / "t.csv", csv_text(rows)))
    parts = split_items(latent_pairs(["5.jpg", "0.jpg", "4.jpg"]), dataset)
    assert {name: part.item_ids for name, part in parts.items()} == {"test": ("5.jpg",), "train": ("0.jpg", "4.jpg")}
    assert parts["train"].x.tolist() == parts["train"].y.tolist() == [[1], [2]]
    with pytest.raises(FuseMixLiteError, match="1 items of the pairs are not in .*t.csv, 'x.jpg' among them"):
        split_items(latent_pairs(["0.jpg", "x.jpg"]), dataset)
    unnamed = LatentPairs(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(FuseMixLiteError, match="items of the pairs are not in"):
        split_items(unnamed, dataset)


def test_items_are_split_by_chance_without_a_column(tmp_path):
    rows = [(f"{i}.jpg", "x") for i in range(50)]
    dataset = read_pairs(write(tmp_path / "t.csv", csv_text(rows, "image,text")))
    pairs = latent_pairs(dataset.items)
    parts = split_items(pairs, dataset)
    assert {name: len(part) for name, part in parts.items()} == {"train": 40, "val": 5, "test": 5}
    ids = [item for part in parts.values() for item in part.item_ids]
    assert sorted(ids) == sorted(dataset.items)
    assert split_items(pairs, None)["test"].item_ids == parts["test"].item_ids
    assert split_items(pairs, dataset, seed=1)["test"].item_ids != parts["test"].item_ids
    assert list(split_items(pairs, dataset, {"a": 0.5, "b": 0.5})) == ["a", "b"]
    with pytest.raises(FuseMixLiteError, match="9 items are too few for parts of"):
        split_items(latent_pairs(dataset.items[:9]), None)
