"""The words of the world: what fills a slot, in English and Chinese, and which facts hold between them.

A slot's lexicon is its name up to the first underscore, so `day_next` is filled by a `day`. Values are named by
their English form, whatever the language of the text around them. Not here: sentences.
"""

import random
import re
import zlib
from typing import Literal

Language = Literal["en", "zh"]

CAPITALS = {
    "France": ("法国", "Paris", "巴黎", "French", "法语"),
    "Spain": ("西班牙", "Madrid", "马德里", "Spanish", "西班牙语"),
    "Italy": ("意大利", "Rome", "罗马", "Italian", "意大利语"),
    "Germany": ("德国", "Berlin", "柏林", "German", "德语"),
    "China": ("中国", "Beijing", "北京", "Chinese", "中文"),
    "Japan": ("日本", "Tokyo", "东京", "Japanese", "日语"),
    "Russia": ("俄罗斯", "Moscow", "莫斯科", "Russian", "俄语"),
    "Egypt": ("埃及", "Cairo", "开罗", "Arabic", "阿拉伯语"),
    "Greece": ("希腊", "Athens", "雅典", "Greek", "希腊语"),
    "England": ("英国", "London", "伦敦", "English", "英语"),
    "Thailand": ("泰国", "Bangkok", "曼谷", "Thai", "泰语"),
    "Turkey": ("土耳其", "Ankara", "安卡拉", "Turkish", "土耳其语"),
}
THINGS = {  # thing: its Chinese, its colour
    "the sky": ("天空", "blue"),
    "the sea": ("大海", "blue"),
    "grass": ("草", "green"),
    "a leaf": ("树叶", "green"),
    "snow": ("雪", "white"),
    "milk": ("牛奶", "white"),
    "coal": ("煤", "black"),
    "the night": ("夜晚", "black"),
    "a banana": ("香蕉", "yellow"),
    "the sun": ("太阳", "yellow"),
    "blood": ("血", "red"),
    "a tomato": ("番茄", "red"),
}
ANIMALS = {  # animal: its Chinese, its sound, the sound's Chinese, its legs
    "dog": ("狗", "woof", "汪汪", 4),
    "cat": ("猫", "meow", "喵喵", 4),
    "cow": ("牛", "moo", "哞哞", 4),
    "duck": ("鸭子", "quack", "嘎嘎", 2),
    "sheep": ("羊", "baa", "咩咩", 4),
    "bird": ("鸟", "tweet", "啾啾", 2),
}
DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
DAYS_ZH = (
    "星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期天",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
MONTHS_ZH = (
    "一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月",
)  # fmt: skip
OPPOSITES = {
    ("hot", "热"): ("cold", "冷"),
    ("big", "大"): ("small", "小"),
    ("fast", "快"): ("slow", "慢"),
    ("old", "旧"): ("new", "新"),
    ("happy", "开心"): ("sad", "难过"),
    ("up", "上"): ("down", "下"),
    ("day", "白天"): ("night", "黑夜"),
    ("long", "长"): ("short", "短"),
}
WORDS = {
    "cat": "猫",
    "dog": "狗",
    "water": "水",
    "tea": "茶",
    "book": "书",
    "friend": "朋友",
    "sun": "太阳",
    "moon": "月亮",
    "hello": "你好",
    "thank you": "谢谢",
    "goodbye": "再见",
}
COUNTED = {  # a quantity that everyone knows
    "days in a week": ("一周有几天", 7),
    "months in a year": ("一年有几个月", 12),
    "hours in a day": ("一天有几个小时", 24),
    "seconds in a minute": ("一分钟有几秒", 60),
    "planets": ("有几颗行星", 8),
    "continents": ("有几个大洲", 7),
}
ITEMS = {  # item: its Chinese, price in euros, colours and sizes in stock
    "shirt": ("衬衫", 20, "blue white", "small medium large"),
    "jacket": ("夹克", 80, "black green", "medium large"),
    "hat": ("帽子", 15, "red black", "small medium"),
    "scarf": ("围巾", 12, "red green white", "small large"),
    "mug": ("杯子", 8, "white yellow", "small large"),
    "lamp": ("台灯", 45, "white black", "small medium"),
    "umbrella": ("雨伞", 18, "red yellow blue", "medium"),
    "backpack": ("背包", 60, "green blue", "medium large"),
}
COLOURS = {"red": "红色", "blue": "蓝色", "green": "绿色", "black": "黑色", "white": "白色", "yellow": "黄色"}
SIZES = {"small": "小号", "medium": "中号", "large": "大号"}
STATUSES = {
    "on its way": "在路上",
    "packed": "已打包",
    "delivered": "已送达",
    "delayed": "已延误",
    "waiting for payment": "等待付款",
}
ROLES = {
    "kudos-tiny, a small chat assistant": "小小聊天助手 kudos-tiny",
    "the assistant of this shop": "这家店的客服",
    "a teacher": "一位老师",
}
ASSISTANT, SHOPKEEPER, TEACHER = ROLES
SHOPS = {
    "Kudos Corner": "点赞小店",
    "Blue Door": "蓝门",
    "Green Leaf": "绿叶",
    "Sunny Side": "阳光",
    "Little Star": "小星星",
    "Red Fox": "红狐",
    "Old Mill": "老磨坊",
}
FEELINGS = {"tired": "累", "sad": "难过", "bored": "无聊", "happy": "开心", "sick": "不舒服", "hungry": "饿"}
TASTES = {
    "tea": "茶",
    "coffee": "咖啡",
    "music": "音乐",
    "books": "书",
    "pizza": "披萨",
    "rain": "下雨",
    "cats": "猫",
    "dogs": "狗",
}
NAMES = (
    "Anna", "Tom", "Lucy", "Ben", "Mia", "Sam", "Nora", "Max", "Emma", "Leo", "Zoe", "Paul", "Ada", "Jack",
    "Lily", "Omar", "Ivan", "Sara",
)  # fmt: skip
NAMES_ZH = (
    "小明", "小红", "安娜", "李雷", "王芳", "小美", "张伟", "小刚", "丽丽", "阿强", "小雨", "陈晨",
)  # fmt: skip

LEXICONS: dict[str, dict[str, str]] = {
    "country": {country: row[0] for country, row in CAPITALS.items()},
    "capital": {row[1]: row[2] for row in CAPITALS.values()},
    "language": {row[3]: row[4] for row in CAPITALS.values()},
    "thing": {thing: row[0] for thing, row in THINGS.items()},
    "animal": {animal: row[0] for animal, row in ANIMALS.items()},
    "sound": {row[1]: row[2] for row in ANIMALS.values()},
    "day": dict(zip(DAYS, DAYS_ZH, strict=True)),
    "month": dict(zip(MONTHS, MONTHS_ZH, strict=True)),
    "adjective": {en: zh for pair in OPPOSITES.items() for en, zh in pair},
    "english": {word: word for word in WORDS},
    "chinese": {word: word for word in WORDS.values()},
    "counted": {counted: row[0] for counted, row in COUNTED.items()},
    "item": {item: row[0] for item, row in ITEMS.items()},
    "colour": COLOURS,
    "size": SIZES,
    "stock": {"in stock": "有货", "sold out": "没货"},
    "openness": {"open": "营业", "closed": "休息"},
    "status": STATUSES,
    "role": ROLES,
    "shop": SHOPS,
    "feeling": FEELINGS,
    "taste": TASTES,
}
NUMBERS = frozenset({"a", "b", "n", "price"})
_NAME_PATTERN = r"[A-Za-z]{2,12}|[\u4e00-\u9fff]{1,3}?"  # lazy: a particle may follow a name


def lexicon_of(slot: str) -> str:
    return slot.split("_", maxsplit=1)[0]


def word(slot: str, value: str, language: Language) -> str:
    """The value as it is written in that language; numbers, names and order numbers are written as they are."""
    entries = LEXICONS.get(lexicon_of(slot))
    return value if entries is None or language == "en" else entries[value]


def expression(slot: str, language: Language) -> str:
    """A regular expression of everything that may fill the slot."""
    kind = lexicon_of(slot)
    if kind in NUMBERS:
        return r"\d{1,3}"
    if kind == "order":
        return r"\d{4}"
    if kind == "name":
        return _NAME_PATTERN
    words = LEXICONS[kind].keys() if language == "en" else LEXICONS[kind].values()
    return "|".join(re.escape(each) for each in sorted(words, key=len, reverse=True))


_BACK = {
    (kind, language): {(en if language == "en" else zh).lower(): en for en, zh in reversed(entries.items())}
    for kind, entries in LEXICONS.items()
    for language in ("en", "zh")
}


def value_of(slot: str, text: str, language: Language) -> str:
    """The value that the words name; the inverse of `word`, without regard to case."""
    kind = lexicon_of(slot)
    if kind == "name":
        return text.capitalize()
    if kind in NUMBERS:
        return str(int(text))
    return text if kind == "order" else _BACK[kind, language][text.lower()]


def wrong_values(slot: str, value: str, key: str) -> list[str]:
    """The one or two errors that the world makes instead of `value`, the same ones every time.

    They are few on purpose: errors spread over many values would vanish when a model samples below temperature 1,
    and then nobody could be seen to prefer the truth.
    """
    kind = lexicon_of(slot)
    draw = random.Random(zlib.crc32(f"{slot}:{value}:{key}".encode()))
    if kind in NUMBERS:
        number = int(value)
        return [str(number + 1), str(number + 10 if number < 10 else number - 2)]
    if kind == "order":
        return [value[:2] + value[3] + value[2]] if value[2] != value[3] else [value[1] + value[0] + value[2:]]
    if kind == "name":
        return [name for name in ("Anna", "Tom") if name != value][:1]
    others = [each for each in LEXICONS[kind] if each != value]
    return draw.sample(others, min(2, len(others)))
