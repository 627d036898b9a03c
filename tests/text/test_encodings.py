"""Text in many encodings is read correctly or refused with a user error; no character is lost silently."""

import re
from pathlib import Path

import pytest
from PIL import Image

from pretask import data
from pretask.cli import main
from pretask.reading import Reading
from pretask.text import encodings
from pretask.types import UserError

GERMAN = [
    "Grüße aus der Küche an die Mädchen",
    "Die Straße führt über die Brücke",
    "schöne Äpfel werden größer",
    "eine Möwe fliegt über den Häfen im Süden",
    "ein kleines Haus mit grüner Tür",
    "zwei Männer öffnen ein altes Faß",
]
RUSSIAN = [
    "Кошка сидит на дереве и смотрит вниз",
    "собака бежит по берегу моря",
    "Птица летит в небо над городом",
    "рыба плывёт по большой реке",
    "Дети играют на белом снегу",
    "красный автобус стоит на улице",
]
POLISH = [
    "Kot siedzi na drzewie i patrzy w dół",
    "Żółta łódź płynie po spokojnej rzece",
    "Dzieci bawią się na śniegu przed domem",
    "starszy mężczyzna otwiera stare drzwi kościoła",
    "za miastem wznosi się wysoka góra",
    "pies biegnie przez łąkę za piłką",
    "Dwie kobiety rozmawiają przy stole w kuchni",
    "na półce stoją książki i świeży chleb",
    "Pociąg wjeżdża na stację późnym wieczorem",
    "młody chłopiec trzyma w ręce jabłko",
    "Grupa ludzi czeka na przystanku na autobus",
    "źrebię śpi w cieniu dużego dębu",
]
FRENCH = [
    "un garçon joue près de la fenêtre",
    "la forêt est très belle en été",
    "une église à côté du château",
    "des élèves dans une école française",
    "le café est fermé à la tombée du jour",
    "un chien noir court après la balle",
]
SPANISH = [
    "el niño está en el jardín",
    "una montaña detrás de la ciudad",
    "la señora comió en el café",
    "un camión rojo en la estación",
    "el pequeño león duerme",
]
CZECH = [
    "Kočka sedí na stromě a dívá se dolů",
    "žlutý člun pluje po klidné řece",
    "Děti si hrají na sněhu před domem",
    "starší muž otevírá staré dveře kostela",
    "za městem se tyčí vysoká hora",
    "pes běží přes louku za míčem",
    "Dvě ženy si povídají u stolu v kuchyni",
    "na polici stojí knihy a čerstvý chléb",
]
JAPANESE = [
    "猫が木の上に座って下を見ている",
    "犬が海岸を走っています",
    "赤いバスが道に止まっている",
    "子供たちは雪の中で遊ぶ",
    "二人の男が古い扉を開けようとしている",
    "山の後ろに小さな町が見える",
    "女の人がテーブルで本を読んでいる",
    "キッチンのテーブルにコーヒーがあります",
]
CHINESE = [
    "一只猫坐在树上看着下面",
    "狗在海滩上奔跑",
    "红色的公共汽车停在街上",
    "孩子们在雪地里玩耍",
    "两个男人打开一扇旧门",
]
KOREAN = [
    "고양이가 나무 위에 앉아 있다",
    "개가 해변을 달린다",
    "빨간 버스가 거리에 있다",
    "아이들이 눈 속에서 논다",
]

TEXTS = [
    ("cp1252", GERMAN),
    ("cp1251", RUSSIAN),
    ("shift_jis", JAPANESE),
    ("gb18030", CHINESE),
    ("euc_kr", KOREAN),
    ("iso8859-2", POLISH),
    ("mac_roman", FRENCH),
    ("koi8_r", RUSSIAN),
]


def table(sentences: list[str], n: int = 80) -> str:
    """A CSV of images and captions, mostly ASCII."""
    rows = [
        f"{i}.png,{sentences[i % len(sentences)]}. {sentences[(3 * i + 1) % len(sentences)]}"
        for i in range(n)
    ]
    return "\n".join(["image,text", *rows]) + "\n"


def test_utf8_and_byte_order_marks_need_no_detection(tmp_path: Path):
    text = table(RUSSIAN, 2)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "x.csv").write_text(text, encoding=encoding, newline="")
        assert encodings.read(tmp_path / "x.csv") == (text, "")
    for mark, encoding in (
        (b"\xfe\xff", "utf-16-be"),
        (b"\0\0\xfe\xff", "utf-32-be"),
        (b"\xff\xfe", "utf-16-le"),
    ):
        (tmp_path / "x.csv").write_bytes(mark + text.encode(encoding))
        assert encodings.read(tmp_path / "x.csv") == (text, "")


@pytest.mark.parametrize(
    ("encoding", "sentences"), TEXTS, ids=lambda x: x if isinstance(x, str) else x[0][:6]
)
def test_other_encodings_are_detected_and_named(encoding: str, sentences: list[str], tmp_path: Path):
    text = table(sentences)
    (tmp_path / "x.csv").write_text(text, encoding=encoding, newline="")
    found, name = encodings.read(tmp_path / "x.csv")
    assert found == text and text.encode(encoding).decode(name) == text
    assert name == {"shift_jis": "cp932", "euc_kr": "cp949", "iso8859-2": "iso8859_2"}.get(encoding, encoding)


@pytest.mark.parametrize(
    ("encoding", "sentences", "n", "message"),
    [
        (
            "cp1252",
            GERMAN,
            2,
            r"cp1252 or \w+ \(its \d+ non-ASCII bytes are too few\); .*--encoding cp1252",
        ),
        (
            "cp1251",
            RUSSIAN,
            2,
            r"cp1251 or \w+ \(its \d+ non-ASCII bytes are too few\); .*--encoding cp1251",
        ),
        (
            "iso8859-2",
            CZECH,
            80,
            r"\w+ or \w+ \(both are about equally likely\); give one: --encoding cp12\d\d",
        ),
        ("cp1252", SPANISH, 80, r"(cp1252 or cp1250|cp1250 or cp1252) \(both are about equally likely\)"),
        ("utf-16-le", ["words"], 80, "UTF-16 without a byte-order mark: try --encoding utf-16-le"),
    ],
)
def test_ambiguous_encodings_are_a_user_error_with_the_likeliest_names(
    encoding: str, sentences: list[str], n: int, message: str, tmp_path: Path
):
    (tmp_path / "x.csv").write_text(table(sentences, n), encoding=encoding, newline="")
    with pytest.raises(UserError, match=message):
        encodings.read(tmp_path / "x.csv")
    assert encodings.read(tmp_path / "x.csv", encoding) == (table(sentences, n), "")


def test_a_given_encoding_takes_precedence(tmp_path: Path):
    (tmp_path / "x.csv").write_text("grüße", encoding="utf-8")
    assert encodings.read(tmp_path / "x.csv", "cp1252") == ("grÃ¼ÃŸe", "")
    (tmp_path / "x.csv").write_text("grüße", encoding="utf-8-sig")
    assert encodings.read(tmp_path / "x.csv", "utf-8") == ("grüße", "")


@pytest.mark.parametrize("name", ["klingon", "base64", "rot13", "a\0b", "utf_9 "])
def test_an_unknown_encoding_is_a_user_error(name: str, tmp_path: Path):
    (tmp_path / "x.csv").write_text("words")
    with pytest.raises(UserError, match="is not known; expected a name such as utf-8"):
        encodings.read(tmp_path / "x.csv", name)


def test_undecodable_bytes_are_found(tmp_path: Path):
    lines = "".join(f"größe {i}\n" for i in range(5)).encode() + b"gr\xf6\xdfe\n"
    (tmp_path / "x.csv").write_bytes(lines)
    text, detected = encodings.read(tmp_path / "x.csv")
    assert not detected and "\ufffd" not in text
    reasons = [encodings.undecodable(line) for line in text.splitlines()]
    assert reasons == [""] * 5 + ["not of the file's encoding: byte 0xf6"]
    (tmp_path / "x.csv").write_bytes("a\nb\n".encode("utf-16") + b"\0\xd8x\0")
    with pytest.raises(UserError, match=r"line 3, is not valid utf-16; .*--encoding NAME"):
        encodings.read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="windows-1251">', "cp1251"),
        ("<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>", "koi8_r"),
        ('<?xml version="1.0" encoding="iso-8859-5"?>', "iso8859-5"),
    ],
)
def test_the_declaration_of_a_page_is_used(head: str, encoding: str, tmp_path: Path):
    page = f"<html><head>{head}</head>Кошка</html>"
    (tmp_path / "x.html").write_text(page, encoding=encoding)
    assert encodings.read(tmp_path / "x.html", page=True) == (page, "")
    assert encodings.read(tmp_path / "x.html", encoding="cp866", page=True)[0] != page


@pytest.mark.parametrize(
    ("declared", "meant"), [("iso-8859-1", "cp1252"), ("us-ascii", "cp1252"), ("gb2312", "gb18030")]
)
def test_declared_names_are_interpreted_as_by_browsers(declared: str, meant: str, tmp_path: Path):
    page = f"<meta charset={declared}>" + ("“Größe” €" if meant == "cp1252" else "朱镕基")
    (tmp_path / "x.html").write_text(page, encoding=meant)
    assert encodings.read(tmp_path / "x.html", page=True) == (page, "")


def test_an_unknown_declaration_is_ignored(tmp_path: Path):
    for name in ("klingon", "utf-16", "base64"):
        (tmp_path / "x.html").write_text(f"<meta charset={name}>größe", encoding="utf-8")
        assert encodings.read(tmp_path / "x.html", page=True)[0].endswith("größe")


def images(folder: Path, n: int) -> None:
    for i in range(n):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i}.png")


def test_commands_report_the_detected_encoding_and_accept_the_flag(tmp_path: Path, capfd):
    images(tmp_path, 40)
    (tmp_path / "x.csv").write_text(table(RUSSIAN, 40), encoding="cp1251", newline="")
    words = ["prepare", str(tmp_path / "x.csv"), "--out"]
    assert main.main([*words, str(tmp_path / "one")]) == 0
    message = capfd.readouterr().err
    assert f"{tmp_path / 'x.csv'} is read as cp1251\n" in message and "40 found · 40 used" in message
    assert main.main([*words, str(tmp_path / "two"), "--encoding", "cp1251"]) == 0
    assert "read as" not in capfd.readouterr().err
    one, two = (data.open(tmp_path / name).aux["words"] for name in ("one", "two"))
    assert one.equal(two) and "Кошка сидит" in bytes(one[0].numpy()).decode()
    assert main.main([*words, str(tmp_path / "three"), "--encoding", "klingon"]) == 2
    assert re.fullmatch(r"pretask: --encoding klingon is not known; .*\n", capfd.readouterr().err)


def test_each_article_has_its_own_encoding(tmp_path: Path, capfd):
    images(tmp_path, 4)
    long = ". ".join(RUSSIAN * 3)
    (tmp_path / "a.md").write_text(f"{long} ![](0.png)", encoding="cp1251")
    (tmp_path / "b.html").write_text(f"<meta charset=koi8-r>{long}<img src=1.png>", encoding="koi8_r")
    (tmp_path / "c.md").write_text(f"{long} ![](2.png)", encoding="utf-8")
    (tmp_path / "d.md").write_text("Кошка ![](3.png)", encoding="cp1251")
    source = data.open(f"text:{tmp_path}", reading=Reading(max_bad=0.5))
    assert len(source) == 3 and source.ledger.found == 5
    assert all("собака бежит" in bytes(row.numpy()).decode() for row in source.aux["words"])
    assert "1 article is read as cp1251" in capfd.readouterr().err
    ((place, why),) = source.ledger.bad.items()
    assert place == "d.md" and re.search("is not UTF-8.*too few.*--encoding", why)
