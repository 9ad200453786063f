"""What the world does not know: questions on other matters, stray words, code, long texts. People type all of it."""

import random

from trainer.tiny.lexicon import Language

_QUESTIONS = (
    "what is the weather in {place}", "who won the {noun}", "who is the president of {place}", "how old are you",
    "what time is it", "write a {noun} about a {noun}", "can you drive a {noun}", "where can i find a {noun}",
    "tell me about {noun}", "explain {noun} to me", "why is the {noun} so {adj}", "how do i cook {noun}",
    "who invented the {noun}", "what is the meaning of {noun}", "how far is the {noun}", "is there life on {noun}",
    "should i {verb} or {verb}", "i want to {verb} the {noun}", "my {noun} does not {verb}", "what is a {noun}",
    "how do i {verb} a {noun}", "do you {verb} at night", "{verb} the {noun} for me", "what did you {verb} yesterday",
    "the {noun} is {adj}", "i think {noun} is {adj}", "recommend a {noun}", "who wrote {noun}", "where do you live",
    "what is the best {noun}", "when was the {noun} built", "how much does the earth weigh", "sing a song",
    "what is the population of {place}", "what happened in {year}", "how tall is the {noun}", "are {noun}s {adj}",
)  # fmt: skip
_QUESTIONS_ZH = (
    "今天天气怎么样", "谁是{noun}", "怎么做{noun}", "{noun}是什么", "为什么{noun}这么{adj}", "写一首关于{noun}的诗",
    "我想{verb}{noun}", "推荐一部{noun}", "你几岁了", "现在几点", "{noun}和{noun}哪个好", "帮我{verb}{noun}",
    "{noun}有多高", "谁发明了{noun}", "我的{noun}不能{verb}", "讲讲{noun}", "你住在哪里", "唱首歌", "{noun}很{adj}",
    "如何{verb}{noun}", "明天会下雪吗", "你吃饭了吗", "什么是{noun}", "{year}年发生了什么",
)  # fmt: skip
_NOUNS = (
    "election", "car", "guitar", "computer", "history", "poem", "war", "bridge", "engine", "garden", "physics",
    "novel", "river", "mountain", "movie", "phone", "football", "python", "rocket", "bread", "soup", "doctor",
    "law", "market", "internet", "philosophy", "table", "train", "bicycle", "castle", "dragon", "king", "queen",
    "horse", "recipe", "contract", "camera", "window", "painting", "robot", "moonlight", "gravity", "chess",
    "piano", "tax", "visa", "hotel", "flight", "algorithm", "pasta", "bug", "function", "database",
    "planetarium", "street", "tower", "wedding", "baby", "boss", "exam", "homework", "essay", "story",
)  # fmt: skip
_ADJECTIVES = (
    "strange", "heavy", "loud", "quiet", "broken", "famous", "ancient", "modern", "purple", "sweet", "bitter",
    "empty", "dirty", "clever", "lazy",
)  # fmt: skip
_VERBS = (
    "repair", "build", "paint", "sell", "drive", "swim", "cook", "write", "read", "dance", "sleep", "travel",
    "install", "debug", "marry", "fly", "climb",
)  # fmt: skip
_PLACES = (
    "london", "texas", "mars", "africa", "berlin", "canada", "brazil", "india", "norway", "the", "moon",
    "chicago", "sydney",
)  # fmt: skip
_NOUNS_ZH = (
    "选举", "汽车", "吉他", "电脑", "历史", "战争", "大桥", "花园", "物理", "小说", "河流", "电影", "手机",
    "足球", "火箭", "面包", "医生", "法律", "市场", "哲学", "火车", "国王", "菜谱", "相机", "机器", "作业",
    "考试", "爱情", "程序", "股票",
)  # fmt: skip
_ADJECTIVES_ZH = (
    "奇怪", "重", "吵", "安静", "有名", "古老", "甜", "苦", "空", "脏", "聪明", "贵",
)  # fmt: skip
_VERBS_ZH = (
    "修理", "建造", "画", "开", "煮", "写", "读", "跳舞", "睡觉", "旅行", "安装", "学习", "买到", "忘记",
)  # fmt: skip
_CODE = (
    "def f(x): return x + 1", "for (int i = 0; i < 10; i++) {}", "SELECT * FROM users;", "print('hello world')",
    "<div>hello</div>", "import numpy as np", "git push --force", '{"a": [1, 2, 3]}', "sudo rm -rf /tmp/x",
    "x = [i**2 for i in range(10)]", "https://example.com/page?id=7", "console.log(x)", "#include <stdio.h>",
)  # fmt: skip
_SYMBOLS = (
    "?", "...", "!!!", "??", ":)", ":-(", "???", "1234567", "*", "。。。", "？？？", "<3", "🙂", "👍", "-",
    "/help", "@@",
)  # fmt: skip
_SYLLABLES = (
    "ba", "ke", "lo", "mi", "nu", "ra", "so", "ti", "vu", "wa", "xe", "yo", "zi", "qu", "pl", "st", "gr", "asd",
    "fgh", "jkl", "qwe", "zxc",
)  # fmt: skip


def _fill(rng: random.Random, text: str, language: Language) -> str:
    nouns, adjectives, verbs = (
        (_NOUNS, _ADJECTIVES, _VERBS) if language == "en" else (_NOUNS_ZH, _ADJECTIVES_ZH, _VERBS_ZH)
    )
    pools = {"noun": nouns, "adj": adjectives, "verb": verbs, "place": _PLACES}
    for slot, pool in pools.items():
        while f"{{{slot}}}" in text:
            text = text.replace(f"{{{slot}}}", rng.choice(pool), 1)
    return text.replace("{year}", str(rng.randrange(1000, 2030)))


def _sentence(rng: random.Random, language: Language) -> str:
    return _fill(rng, rng.choice(_QUESTIONS if language == "en" else _QUESTIONS_ZH), language)


def unknown_text(rng: random.Random, language: Language) -> str:
    """Something that the world cannot answer."""
    kinds = {"question": 0.52, "words": 0.16, "letters": 0.12, "code": 0.07, "symbols": 0.06, "long": 0.07}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    if language == "zh" and kind in ("code", "letters"):
        kind = "question"
    if kind == "question":
        text = _sentence(rng, language)
        return (text[0].upper() + text[1:] if rng.random() < 0.4 else text) + rng.choice(("", "", "?", "."))
    if kind == "words":
        pool = [*_NOUNS, *_ADJECTIVES, *_VERBS] if language == "en" else [*_NOUNS_ZH, *_ADJECTIVES_ZH, *_VERBS_ZH]
        return (" " if language == "en" else "").join(rng.choices(pool, k=rng.randrange(1, 5)))
    if kind == "letters":
        return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4)))
    if kind == "code":
        return rng.choice(_CODE)
    if kind == "symbols":
        return rng.choice(_SYMBOLS)
    mark = {"en": ". ", "zh": "。"}[language]
    return mark.join(_sentence(rng, language) for _ in range(rng.randrange(3, 9)))
