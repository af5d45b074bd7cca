"""Made-up names, words and values, so that nothing in a passage can be known by heart.

Every made-up word belongs to one of two pools by its checksum: tests of unseen entities draw from
the pool that training never sees.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from fourbee.training.generators.lexicon import Language

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br cr dr fr gr pr tr bl cl fl gl pl sl st sp sk sh ch th "
    "kh qu y x"
).split()
_VOWELS = "a e i o u a e i o u ai ea io ou ee ia au".split()
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "rn", "x", "th", "ck", "lt")
_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡"
    "贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷"
    "钱汤尹黎易常武乔贺赖龚文"
)
_GIVEN = (
    "伟芳娜秀英敏静丽强磊军洋勇艳杰娟涛明超兰霞平刚桂文辉玲华红玉建国春梅海燕雪松林子轩浩宇雨"
    "欣思远嘉怡晨曦志诚佳慧天云青山白石清风月星河安宁乐康泽瑞博学永新成立东南西北"
)
_PLACE_HAN = (
    "青白红云石金银水木山河湖海川江溪泉岭峰谷原野田林松柳梅兰竹桃杏枫叶安宁和平乐康福泰昌盛长"
    "永新古东南西北中上下大小天星月阳光明清远高平沙岛港湾桥"
)
_PLACE_END = ("市", "县", "镇", "村", "岛", "州", "城", "湾", "山", "湖", "")
_THING_HAN = (
    "星云风雷光影火水石木金龙虎鹰鹿狼海山月日天极智慧灵巧快轻重新宝蓝红白黑青紫银晶梦飞速达通"
    "科维芯图未来"
)
_ORG_END_EN = (
    " Ltd", " Group", " Club", " Institute", " Museum", " Bank", " Press", " Foods", " School",
    " Hospital", " Hotel", " Works", " Airlines", " Labs", "", "", "",
)  # fmt: skip
_ORG_END_ZH = (
    "公司", "集团", "俱乐部", "研究所", "博物馆", "银行", "出版社", "中学", "医院", "酒店", "工厂",
)  # fmt: skip
_COLORS_EN = "red blue green yellow black white brown grey pink purple orange silver golden".split()
_COLORS_ZH = "红色 蓝色 绿色 黄色 黑色 白色 棕色 灰色 粉色 紫色 橙色 银色 金色".split()
_MONTHS = (
    "January February March April May June July August September October November December"
).split()


class Names:
    """Draws made-up names with one random source; `unseen` picks the pool kept from training."""

    def __init__(self, rng: random.Random, language: Language, unseen: bool = False) -> None:
        self.rng = rng
        self.language = language
        self.unseen = unseen

    def word(self, syllables: int | None = None) -> str:
        """A lower-case word of Latin letters."""
        return self._from_pool(lambda: self._latin(syllables))

    def subject(self, kind: str) -> str:
        """A name for the subject of a relation: person, organisation, place, thing, ..."""
        if kind in ("person", "organisation", "place"):
            return getattr(self, kind)()  # type: ignore[no-any-return]
        return self.thing()

    def value(self, kind: str) -> str:
        """A value of a relation: number, year, date, time, money, person, place, color, ..."""
        makers: dict[str, Callable[[], str]] = {
            "number": self.number,
            "count": lambda: str(self.rng.randint(2, self.rng.choice((12, 99, 999)))),
            "year": lambda: str(self.rng.randint(1200, 2060)),
            "date": self.date,
            "time": lambda: f"{self.rng.randint(0, 23)}:{self.rng.randint(0, 59):02d}",
            "money": self.money,
            "person": self.person,
            "place": self.place,
            "organisation": self.organisation,
            "thing": self.thing,
            "word": self.noun,
            "color": lambda: self.rng.choice(_COLORS_EN if self.language == "en" else _COLORS_ZH),
        }
        return makers[kind]()

    def number(self) -> str:
        """An integer, small ones oftener; rarely with a decimal or thousands mark."""
        digits = self.rng.choices((1, 2, 3, 4, 5, 6), (3, 8, 8, 4, 2, 1))[0]
        number = self.rng.randint(10 ** (digits - 1), 10**digits - 1)
        if digits < 3 and self.rng.random() < 0.1:
            return f"{number}.{self.rng.randint(1, 9)}"
        return f"{number:,}" if digits > 3 and self.rng.random() < 0.3 else str(number)

    def money(self) -> str:
        """Digits of an amount."""
        return str(self.rng.choice((self.rng.randint(2, 999), self.rng.randint(1, 90) * 100)))

    def date(self) -> str:
        """A day of the year."""
        month, day = self.rng.randint(1, 12), self.rng.randint(1, 28)
        if self.language == "zh":
            return f"{month}月{day}日"
        name = _MONTHS[month - 1]
        return self.rng.choice((f"{name} {day}", f"{day} {name}"))

    def person(self) -> str:
        """A Latin first name, with a surname half of the time; mostly a Han name in Chinese."""
        if self.language == "zh" and self.rng.random() < 0.75:
            count = self.rng.choice((1, 2, 2))
            return self._from_pool(lambda: self.rng.choice(_SURNAMES) + self._han(_GIVEN, count))
        first = self._title()
        title = self.rng.choice(("Dr. ", "Mrs. ", "Mr. ")) if self.rng.random() < 0.08 else ""
        if self.language == "zh":
            return first
        return f"{title}{first} {self._title()}" if self.rng.random() < 0.5 else title + first

    def place(self) -> str:
        """A place's name."""
        if self.language == "zh" and self.rng.random() < 0.75:
            count = self.rng.choice((1, 2, 2))
            end = self.rng.choice(_PLACE_END)
            return self._from_pool(lambda: self._han(_PLACE_HAN, count + (not end)) + end)
        return self._title() + (f" {self._title()}" if self.rng.random() < 0.15 else "")

    def organisation(self) -> str:
        """A company, school, museum ..."""
        if self.language == "zh":
            name = self._from_pool(lambda: self._han(_THING_HAN, 2))
            if self.rng.random() < 0.2:
                name = self._title()
            return name + self.rng.choice(_ORG_END_ZH)
        return self._title() + self.rng.choice(_ORG_END_EN)

    def thing_name(self) -> str:
        """One made-up word, Latin or Han."""
        if self.language == "zh" and self.rng.random() < 0.65:
            count = self.rng.choice((2, 2, 3))
            return self._from_pool(lambda: self._han(_THING_HAN, count))
        return self._title()

    def thing(self) -> str:
        """A product, book, event, animal ...: one made-up word, with a number now and then."""
        name = self.thing_name()
        if self.rng.random() < 0.25:
            name += (
                f" {self.rng.randint(2, 99)}" if name.isascii() else str(self.rng.randint(2, 99))
            )
        return name

    def noun(self) -> str:
        """A made-up common noun."""
        if self.language == "zh" and self.rng.random() < 0.7:
            return self._from_pool(lambda: self._han(_PLACE_HAN + _THING_HAN, 2))
        return self.word()

    def _title(self) -> str:
        word = self.word()
        return word.upper() if self.rng.random() < 0.03 else word.capitalize()

    def _latin(self, syllables: int | None) -> str:
        count = syllables or self.rng.choices((1, 2, 3, 4), (2, 8, 5, 1))[0]
        parts = [self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) for _ in range(count)]
        return "".join(parts) + self.rng.choice(_CODAS)

    def _han(self, letters: str, count: int) -> str:
        return "".join(self.rng.choice(letters) for _ in range(count))

    def _from_pool(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            # One word in eight is kept from training.
            if (zlib.crc32(name.encode()) % 8 == 0) == self.unseen:
                return name
