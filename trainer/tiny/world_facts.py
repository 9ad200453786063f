"""Simple facts and small sums. Data only."""

# ruff: noqa: E501 -- tables of phrases: one row a kind, so that the languages can be read side by side

from trainer.tiny.intent import Intent, Wording
from trainer.tiny.lexicon import ANIMALS, CAPITALS, COUNTED, DAYS, MONTHS, OPPOSITES, THINGS, WORDS

_OPPOSITE = {first[0]: second[0] for first, second in OPPOSITES.items()}
_OPPOSITE |= {second: first for first, second in _OPPOSITE.items()}
_COUNTRY = {row[1]: country for country, row in CAPITALS.items()}
_ENGLISH = {chinese: english for english, chinese in WORDS.items()}
_WHAT = "(what is|whats|tell me|do you know)"
_FACT_DETAILS = ("I learned that in school", "That is easy to remember", "You can look it up in any book")
_FACT_DETAILS_ZH = ("这是学校里学的", "这个很好记", "书上都能查到")
_SUM_DETAILS = ("I counted on my fingers", "You can check it on paper", "Small sums are fun")
_SUM_DETAILS_ZH = ("我用手指数的", "你可以用纸算一下", "小算术很有意思")


def _sum(name: str, sign: str, words: str, noun: str, zh_sign: str) -> Intent:
    """One of the operations; they differ in their sign and words alone."""
    formula = f"{{a}} {sign} {{b}}"
    asks = (
        f"[{_WHAT} |how much is |calculate ]{{a}} ({sign}|{words}) {{b}}[ equals]",
        f"what does {{a}} {words} {{b}} (make|give)",
    )
    return Intent(
        name, "sums", slots=("a", "b"), answer="n", weight=2.0,
        right=lambda s: str(
            {"+": int(s["a"]) + int(s["b"]), "-": int(s["a"]) - int(s["b"]), "*": int(s["a"]) * int(s["b"])}[sign]
        ),
        en=Wording(
            asks=asks, follows=(f"[and |what about |ok ]{{a}} ({sign}|{words}) {{b}}",),
            restate=f"You asked for {formula}", short=("{n}", "It is {n}"),
            full=(f"{formula} = {{n}}", f"The {noun} is {{n}}", f"{{a}} {words} {{b}} is {{n}}"), details=_SUM_DETAILS,
        ),
        zh=Wording(
            asks=(f"{{a}}({zh_sign}|{sign}){{b}}[等于几|是多少|等于多少|得几]", f"(请算|算一下){{a}}({zh_sign}|{sign}){{b}}"),
            follows=(f"那{{a}}({zh_sign}|{sign}){{b}}呢",),
            restate=f"你问的是{formula}", short=("{n}", "是{n}"),
            full=(f"{formula} = {{n}}", "答案是{n}", f"{{a}}{zh_sign}{{b}}等于{{n}}"), details=_SUM_DETAILS_ZH,
        ),
    )  # fmt: skip


FACTS: tuple[Intent, ...] = (
    Intent(
        "capital_of", "facts", slots=("country",), answer="capital", right=lambda s: CAPITALS[s["country"]][1], weight=2.5,
        en=Wording(
            asks=(f"{_WHAT} the capital[ city] of {{country}}", "capital of {country}", "the capital of {country}", "which city is the capital of {country}", "{country} capital", "whats {country}s capital"),
            follows=("and [of ]{country}", "what about {country}", "how about {country}", "and the capital of {country}"),
            restate="You asked for the capital of {country}", short=("{capital}", "It is {capital}"), full=("The capital of {country} is {capital}", "{capital} is the capital of {country}", "In {country} the capital is {capital}"),
            details=(*_FACT_DETAILS[:2], "Many people live there"),
        ),
        zh=Wording(
            asks=("{country}的首都(是哪里|是什么|在哪里|是哪|叫什么)", "{country}首都[是哪里]", "{country}的首都"), follows=("那{country}呢", "{country}呢"),
            restate="你问的是{country}的首都", short=("{capital}", "是{capital}"), full=("{country}的首都是{capital}", "{capital}是{country}的首都", "{country}的首都叫{capital}"),
            details=(*_FACT_DETAILS_ZH[:2], "那里住着很多人"),
        ),
    ),
    Intent(
        "country_of", "facts", slots=("capital",), answer="country", right=lambda s: _COUNTRY[s["capital"]],
        en=Wording(
            asks=("where is {capital}", "[in ](which|what) country is {capital}[ in]", "{capital} is the capital of (what|which country)", "where is {capital} located"), follows=("and {capital}", "what about {capital}"),
            restate="You asked where {capital} is", short=("{country}", "In {country}"), full=("{capital} is in {country}", "{capital} is a city in {country}", "You will find {capital} in {country}"),
            details=(*_FACT_DETAILS[:2], "It is a big city"),
        ),
        zh=Wording(
            asks=("{capital}在哪[里|个国家]", "{capital}是哪[个]国[家]的首都", "{capital}属于哪个国家"), follows=("那{capital}呢", "{capital}呢"),
            restate="你问的是{capital}在哪里", short=("{country}", "在{country}"), full=("{capital}在{country}", "{capital}是{country}的城市", "{capital}位于{country}"),
            details=(*_FACT_DETAILS_ZH[:2], "那是一座大城市"),
        ),
    ),
    Intent(
        "language_of", "facts", slots=("country",), answer="language", right=lambda s: CAPITALS[s["country"]][3],
        en=Wording(
            asks=("what language (is spoken|do they speak|do people speak) in {country}", "which language (is spoken|do they speak|do people speak) in {country}", "language of {country}"), follows=("and in {country}",),
            restate="You asked which language {country} speaks", short=("{language}", "It is {language}"), full=("People in {country} speak {language}", "In {country} they speak {language}", "The language of {country} is {language}"),
            details=_FACT_DETAILS,
        ),
        zh=Wording(
            asks=("{country}[人]说什么[语|语言|话]", "{country}的语言是什么"), follows=("那{country}人呢",),
            restate="你问的是{country}的语言", short=("{language}", "是{language}"), full=("{country}人说{language}", "{country}的语言是{language}", "在{country}人们说{language}"),
            details=_FACT_DETAILS_ZH,
        ),
    ),
    Intent(
        "colour_of", "facts", slots=("thing",), answer="colour", right=lambda s: THINGS[s["thing"]][1], weight=1.5,
        en=Wording(
            asks=("what (colour|color) is {thing}", "which (colour|color) is {thing}", "the (colour|color) of {thing}", "what is the (colour|color) of {thing}"), follows=("and {thing}", "what about {thing}"),
            restate="You asked for the colour of {thing}", short=("{colour}", "It is {colour}"), full=("The colour of {thing} is {colour}", "I would say that {thing} is {colour}", "Most people see that {thing} is {colour}"),
            details=("Just have a look", *_FACT_DETAILS[1:]),
        ),
        zh=Wording(
            asks=("{thing}是什么颜色[的]", "{thing}的颜色[是什么]", "{thing}什么颜色"), follows=("那{thing}呢", "{thing}呢"),
            restate="你问的是{thing}的颜色", short=("{colour}", "是{colour}"), full=("{thing}是{colour}的", "{thing}的颜色是{colour}", "大家都看到{thing}是{colour}"),
            details=("看一看就知道", *_FACT_DETAILS_ZH[1:]),
        ),
    ),
    Intent(
        "sound_of", "facts", slots=("animal",), answer="sound", right=lambda s: ANIMALS[s["animal"]][1],
        en=Wording(
            asks=("what (sound|noise) does (a|the) {animal} make", "what does (a|the) {animal} say", "how does (a|the) {animal} (sound|go)"), follows=("and (a|the) {animal}", "what about (a|the) {animal}"),
            restate="You asked what the {animal} says", short=("{sound}", "It says {sound}"), full=("The {animal} says {sound}", "A {animal} goes {sound}", "The sound of a {animal} is {sound}"),
            details=("You can hear it on a farm", "It can be loud", _FACT_DETAILS[1]),
        ),
        zh=Wording(
            asks=("{animal}(怎么叫|是怎么叫的)", "{animal}的叫声[是什么]", "{animal}发出什么声音"), follows=("那{animal}呢", "{animal}呢"),
            restate="你问的是{animal}怎么叫", short=("{sound}", "是{sound}"), full=("{animal}的叫声是{sound}", "{animal}会{sound}叫", "{animal}叫起来是{sound}"),
            details=("农场里能听到", "有时候很大声", _FACT_DETAILS_ZH[1]),
        ),
    ),
    Intent(
        "legs_of", "facts", slots=("animal",), answer="n", right=lambda s: str(ANIMALS[s["animal"]][3]),
        en=Wording(
            asks=("how many legs does (a|the) {animal} have", "how many legs has a {animal}", "number of legs of a {animal}"), follows=("how many legs (on|for) a {animal}",),
            restate="You asked for the legs of a {animal}", short=("{n}", "It has {n}"), full=("The {animal} has {n} legs", "I count {n} legs on a {animal}", "A {animal} walks with {n} legs"),
            details=("I counted them twice", *_FACT_DETAILS[1:]),
        ),
        zh=Wording(
            asks=("{animal}有(几条|多少条|几只)腿", "{animal}几条腿"), follows=("{animal}的腿呢",),
            restate="你问的是{animal}的腿", short=("{n}条", "有{n}条"), full=("{animal}有{n}条腿", "{animal}的腿有{n}条", "我数了，{animal}有{n}条腿"),
            details=("我数了两遍", *_FACT_DETAILS_ZH[1:]),
        ),
    ),
    Intent(
        "day_after", "facts", slots=("day",), answer="day_next", right=lambda s: DAYS[(DAYS.index(s["day"]) + 1) % 7],
        en=Wording(
            asks=("what [day ]comes after {day}", "what is the day after {day}", "which day (follows|comes after) {day}", "whats after {day}"), follows=("and after {day}",),
            restate="You asked for the day after {day}", short=("{day_next}", "It is {day_next}"), full=("After {day} comes {day_next}", "The day after {day} is {day_next}", "{day} is followed by {day_next}"),
            details=("The week goes round and round", *_FACT_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("{day}之后是[星期几|哪天]", "{day}的后一天是(星期几|哪天)", "{day}后面是星期几"), follows=("那{day}之后呢",),
            restate="你问的是{day}之后", short=("{day_next}", "是{day_next}"), full=("{day}之后是{day_next}", "{day}的后一天是{day_next}", "过了{day}就是{day_next}"),
            details=("一周又一周", *_FACT_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "month_after", "facts", slots=("month",), answer="month_next", right=lambda s: MONTHS[(MONTHS.index(s["month"]) + 1) % 12],
        en=Wording(
            asks=("what [month ]comes after {month}", "what is the month after {month}", "which month (follows|comes after) {month}"), follows=("and after {month}",),
            restate="You asked for the month after {month}", short=("{month_next}", "It is {month_next}"), full=("After {month} comes {month_next}", "The month after {month} is {month_next}", "{month} is followed by {month_next}"),
            details=("The year goes round and round", *_FACT_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("{month}之后是[几月|哪个月]", "{month}的下一个月是(几月|哪个月)", "{month}后面是几月"), follows=("那{month}之后呢",),
            restate="你问的是{month}之后", short=("{month_next}", "是{month_next}"), full=("{month}之后是{month_next}", "{month}的下一个月是{month_next}", "过了{month}就是{month_next}"),
            details=("一年又一年", *_FACT_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "opposite_of", "facts", slots=("adjective",), answer="adjective_other", right=lambda s: _OPPOSITE[s["adjective"]],
        en=Wording(
            asks=(f"{_WHAT} the opposite of {{adjective}}", "opposite of {adjective}", "the opposite of {adjective}"), follows=("and of {adjective}", "and {adjective}"),
            restate="You asked for the opposite of {adjective}", short=("{adjective_other}", "It is {adjective_other}"), full=("The opposite of {adjective} is {adjective_other}", "{adjective_other} is the opposite of {adjective}", "People say {adjective_other}, not {adjective}"),
            details=_FACT_DETAILS,
        ),
        zh=Wording(
            asks=("{adjective}的反义词[是什么]", "{adjective}的反面是什么", "和{adjective}相反的是什么"), follows=("那{adjective}呢", "{adjective}呢"),
            restate="你问的是{adjective}的反义词", short=("{adjective_other}", "是{adjective_other}"), full=("{adjective}的反义词是{adjective_other}", "和{adjective}相反的是{adjective_other}", "{adjective}的反面是{adjective_other}"),
            details=_FACT_DETAILS_ZH,
        ),
    ),
    Intent(
        "to_chinese", "facts", slots=("english",), answer="chinese", right=lambda s: WORDS[s["english"]],
        en=Wording(
            asks=("how do (you|i) say {english} in chinese", "what is {english} in chinese", "whats {english} in chinese", "translate {english}[ (to|into) chinese]", "the chinese word for {english}"), follows=("and {english}", "what about {english}"),
            restate="You asked for {english} in Chinese", short=("{chinese}", "It is {chinese}"), full=("The Chinese for {english} is {chinese}", "In Chinese you say {chinese}", "You write it as {chinese}"),
            details=("It takes some practice", *_FACT_DETAILS[1:]),
        ),
        zh=Wording(
            asks=("{english}用中文怎么说", "{english}是什么意思", "{english}的中文是什么"), follows=("那{english}呢",),
            restate="你问的是{english}的中文", short=("{chinese}", "是{chinese}"), full=("{english}的意思是{chinese}", "中文说{chinese}", "{english}的中文是{chinese}"),
            details=("多练就会了", *_FACT_DETAILS_ZH[1:]),
        ),
    ),
    Intent(
        "to_english", "facts", slots=("chinese",), answer="english", right=lambda s: _ENGLISH[s["chinese"]],
        en=Wording(
            asks=("what does {chinese} mean", "what is {chinese} in english", "translate {chinese}"), follows=(),
            restate="You asked what {chinese} means", short=("It is {english}", "It means {english}"), full=("{chinese} means {english}", "In English you say {english}", "The English word is {english}"),
            details=("It takes some practice", *_FACT_DETAILS[1:]),
        ),
        zh=Wording(
            asks=("{chinese}用英(语|文)怎么说", "{chinese}的英文[是什么]", "英文{chinese}怎么说", "{chinese}英语怎么说"), follows=("那{chinese}呢", "{chinese}呢"),
            restate="你问的是{chinese}的英文", short=("是{english}", "叫{english}"), full=("{chinese}的英文是{english}", "英文说{english}", "你可以说{english}"),
            details=("多练就会了", *_FACT_DETAILS_ZH[1:]),
        ),
    ),
    Intent(
        "count_of", "facts", slots=("counted",), answer="n", right=lambda s: str(COUNTED[s["counted"]][1]), weight=1.2,
        en=Wording(
            asks=("how many {counted}[ are there]", "the number of {counted}", "do you know how many {counted}[ there are]"), follows=("and how many {counted}",),
            restate="You asked how many {counted} there are", short=("{n}", "It is {n}"), full=("There are {n} {counted}", "I count {n} {counted}", "The answer is {n} {counted}"),
            details=_FACT_DETAILS,
        ),
        zh=Wording(
            asks=("{counted}", "[请问]{counted}啊", "你知道{counted}吗"), follows=("那{counted}",),
            restate="你问的是{counted}", short=("{n}", "是{n}"), full=("答案是{n}", "一共{n}", "我数了，是{n}"),
            details=_FACT_DETAILS_ZH,
        ),
    ),
    _sum("add", "+", "plus", "sum", "加"),
    _sum("subtract", "-", "minus", "difference", "减"),
    _sum("multiply", "*", "times", "product", "乘"),
)  # fmt: skip
