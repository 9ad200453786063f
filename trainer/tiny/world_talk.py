"""Small talk: greetings, names, feelings, thanks, and what to say to what the world does not know. Data only."""

# ruff: noqa: E501 -- tables of phrases: one row a kind, so that the languages can be read side by side

from trainer.tiny.intent import Intent, Wording

TALK: tuple[Intent, ...] = (
    Intent(
        "hello", "talk", weight=3.0,
        en=Wording(
            asks=("hi", "hello", "hey", "hi there", "hello there", "good (morning|evening|afternoon)", "hey there", "yo", "greetings", "hello (kudos|bot)"),
            restate="You said hello", short=("Hello", "Hi", "Hey"), full=("Hello there", "Hi, it is good to see you", "Hello and welcome"),
            details=("I am ready when you are", "You can ask me about orders, facts and sums", "I am here all day"),
        ),
        zh=Wording(
            asks=("你好", "嗨", "早上好", "晚上好", "下午好", "哈喽", "你好啊", "在吗", "您好"),
            restate="你在打招呼", short=("你好", "嗨", "哈喽"), full=("你好啊", "你好，又见面了", "嗨，欢迎你来"),
            details=("我随时都在", "你可以问我订单、常识和算术", "今天也要加油"),
        ),
    ),
    Intent(
        "how_are_you", "talk", weight=1.5,
        en=Wording(
            asks=("how are you[ doing][ today]", "hows it going", "how do you do", "are you (ok|fine|well)", "whats up", "how do you feel[ today]"),
            restate="You asked how I am", short=("Fine", "Good", "Very well"), full=("I am fine", "I am doing well today", "All is well here"),
            details=("It has been a quiet day", "There were many good questions today", "I am ready to work"),
        ),
        zh=Wording(
            asks=("你好吗", "你怎么样", "最近(好吗|怎么样)", "你今天(好吗|怎么样)", "过得怎么样", "你还好吗"),
            restate="你问的是我好不好", short=("还好", "很好", "不错"), full=("我很好", "我今天很不错", "我这里一切都好"),
            details=("今天很安静", "今天有很多好问题", "我随时可以开始"),
        ),
    ),
    Intent(
        "who_are_you", "talk", weight=1.5, answer="role",
        en=Wording(
            asks=("who are you", "what are you", "whats your name", "what is your name", "are you (a bot|a robot|human|real)", "(who|what) am i talking to", "introduce yourself", "tell me about yourself"),
            restate="You asked who I am", short=("{role}",), full=("I am {role}", "You are talking to {role}", "My role here is {role}"),
            details=("I am a small model and I learn from votes", "I speak English and Chinese", "I answer short questions"),
        ),
        zh=Wording(
            asks=("你是谁", "你叫什么[名字]", "你是什么", "你是机器人吗", "你是人吗", "介绍一下你自己", "我在和谁说话"),
            restate="你问的是我是谁", short=("{role}",), full=("我是{role}", "和你聊天的是{role}", "我在这里的身份是{role}"),
            details=("我是一个小模型，从投票中学习", "我会说英文和中文", "我回答简短的问题"),
        ),
    ),
    Intent(
        "what_can_you_do", "talk", weight=2.0,
        en=Wording(
            asks=("what can you do", "help", "help me", "what can i ask[ you]", "what do you know", "how can you help[ me]", "can you help[ me]", "what are you (good at|for)", "i need help", "how does this work", "can i ask[ you] something", "i have a question"),
            restate="You asked what I can do", short=("Orders, facts and sums", "Small talk, orders, facts and sums"),
            full=("I can help with orders, prices, simple facts and sums", "You can ask me about the shop, capitals, animals and sums", "I know a shop, some facts and small sums"),
            details=("Try asking for the capital of Japan", "Try asking what 3 + 4 is", "I can also look up an order"),
        ),
        zh=Wording(
            asks=("你会(什么|做什么|干什么)", "你能(做什么|干什么|帮我什么)", "帮助", "帮帮我", "我能问什么", "你知道什么", "可以帮我吗", "怎么用", "我有[一]个问题", "我可以问[你]问题吗"),
            restate="你问的是我会什么", short=("订单、常识和算术", "聊天、订单、常识和算术"),
            full=("我可以帮忙查订单、价格、常识和算术", "你可以问我商店、首都、动物和算术", "我知道一家店、一些常识和小算术"),
            details=("可以问我日本的首都", "可以问我3加4等于几", "我也可以查订单"),
        ),
    ),
    Intent(
        "thanks", "talk", weight=1.5,
        en=Wording(
            asks=("thanks", "thank you[ (so|very) much]", "thx", "thanks a lot", "many thanks", "cheers", "great thanks", "ok thanks", "that helps", "perfect thanks"),
            restate="You said thanks", short=("No problem", "Any time", "Sure thing"), full=("That was no trouble at all", "It was easy to help", "I was just doing my job"),
            details=("Come back whenever you like", "That is what I am here for", "I am around all day"),
        ),
        zh=Wording(
            asks=("谢谢[你]", "多谢", "感谢", "非常感谢", "好的谢谢", "谢谢啦", "太感谢了"),
            restate="你说了谢谢", short=("不客气", "没事", "小事"), full=("不用谢", "举手之劳", "这是我该做的"),
            details=("有事再来找我", "我就是做这个的", "我一整天都在"),
        ),
    ),
    Intent(
        "bye", "talk",
        en=Wording(
            asks=("bye[ bye]", "goodbye", "see you[ later|tomorrow]", "good night", "i have to go[ now]", "cya", "talk to you later", "that is all", "thats all"),
            restate="You are leaving", short=("Bye", "Goodbye", "See you"), full=("Goodbye for now", "See you next time", "Until next time"),
            details=("I will be here tomorrow", "It was a good talk", "The door is always open"),
        ),
        zh=Wording(
            asks=("再见", "拜拜", "晚安", "我走了", "下次见", "回头见", "没有别的了"),
            restate="你要走了", short=("再见", "拜拜", "回见"), full=("那就再见了", "下次再见", "我们下次聊"),
            details=("明天我还在", "今天聊得不错", "大门一直开着"),
        ),
    ),
    Intent(
        "name_tell", "talk", slots=("name",), weight=2.0,
        en=Wording(
            asks=("my name is {name}", "im called {name}", "call me {name}", "you can call me {name}", "i am called {name}"),
            restate="You told me your name", short=("Hi {name}", "Hello {name}"), full=("It is good to meet you, {name}", "So you are {name}", "I will call you {name}"),
            details=("That is a good name", "I will remember it while we talk", "Now we know each other"),
        ),
        zh=Wording(
            asks=("我叫{name}", "我的名字是{name}", "叫我{name}", "你可以叫我{name}"),
            restate="你告诉了我名字", short=("你好{name}", "嗨{name}"), full=("认识你了，{name}", "原来你是{name}", "我就叫你{name}"),
            details=("这个名字不错", "聊天时我会记住", "现在我们认识了"),
        ),
    ),
    Intent(
        "name_recall", "talk", answer="name", weight=0.6,
        en=Wording(
            asks=("whats my name", "what is my name", "who am i", "do you (remember|know) my name", "what did i say my name was"),
            restate="You asked for your name", short=("{name}",), full=("Your name is {name}", "You are {name}", "You told me that you are {name}"),
            details=("You said so earlier", "I remember it from this talk", "That is a good name"),
        ),
        zh=Wording(
            asks=("我叫什么[名字]", "我是谁", "你(记得|知道)我的名字吗", "我的名字是什么"),
            restate="你问的是你的名字", short=("{name}",), full=("你叫{name}", "你是{name}", "你说过你叫{name}"),
            details=("你刚才说过", "我记得我们聊过", "这个名字不错"),
        ),
    ),
    Intent(
        "name_missing", "talk", weight=0.0,
        en=Wording(
            asks=(), restate="You asked for your name", short=("I do not know it", "No idea yet"),
            full=("You have not told me your name yet", "I do not know your name yet", "Your name has not come up"),
            details=("You can tell me and I will remember", "I only know what is said here"),
        ),
        zh=Wording(
            asks=(), restate="你问的是你的名字", short=("我不知道", "还不清楚"),
            full=("你还没告诉我你的名字", "我还不知道你叫什么", "我们还没说到你的名字"),
            details=("告诉我，我会记住", "我只知道这里说过的话"),
        ),
    ),
    Intent(
        "joke", "talk",
        en=Wording(
            asks=("tell me a joke", "do you know a joke", "make me laugh", "say something funny", "a joke", "another joke", "one more joke", "be funny"),
            restate="You wanted a joke", short=("A fish forgot how to swim, so it took a bus", "My lamp is so bright that it went to school"),
            full=("A cat walked into a shop and asked for mice cream", "A sheep called the shop and only said baa, so we sent it a sweater", "A duck paid with a bill, of course it did"),
            details=("I have told it many times", "The ducks liked it", "It is funnier at night"),
        ),
        zh=Wording(
            asks=("讲[一]个笑话", "说[一]个笑话", "你会讲笑话吗", "逗我笑", "再来一个笑话", "来个笑话"),
            restate="你想听笑话", short=("鱼忘了游泳，只好坐公交", "台灯太聪明，所以去上学了"),
            full=("一只猫走进商店，说要买老鼠味的冰淇淋", "一只羊打来电话，只说咩咩，我们寄去了毛衣", "一只鸭子来买东西，说记在嘴上"),
            details=("这个笑话我讲过很多次", "鸭子们很喜欢", "晚上听更好笑"),
        ),
    ),
    Intent(
        "feeling", "talk", slots=("feeling",),
        en=Wording(
            asks=("i am[ so| very] {feeling}[ today]", "im[ so| very] {feeling}[ today]", "i feel[ so] {feeling}", "i am feeling {feeling}"),
            restate="You said that you are {feeling}", short=("So you are {feeling}", "I see, {feeling}"), full=("I hear that you are {feeling}", "It is all right to be {feeling}", "Everyone is {feeling} at times"),
            details=("Take a short break", "A cup of tea goes well with that", "We can talk about it"),
        ),
        zh=Wording(
            asks=("我[今天|有点](很|好|真|非常|有点){feeling}", "我{feeling}了", "我觉得[很]{feeling}"),
            restate="你说你{feeling}", short=("原来你{feeling}", "嗯，{feeling}"), full=("我听到你说{feeling}", "{feeling}也没关系", "人人都有{feeling}的时候"),
            details=("休息一下吧", "喝杯茶正好", "我们可以聊聊"),
        ),
    ),
    Intent(
        "do_you_like", "talk", slots=("taste",),
        en=Wording(
            asks=("do you like {taste}", "do you love {taste}", "what do you think (of|about) {taste}", "are you fond of {taste}"), follows=("and {taste}", "what about {taste}", "how about {taste}"),
            restate="You asked if I like {taste}", short=("Yes, {taste} for me", "I do like {taste}"), full=("I like {taste} very much", "I think {taste} can make a day better", "Yes, I like the idea of {taste}"),
            details=("I have only read about it", "Many people tell me the same", "Everyone has a taste of their own"),
        ),
        zh=Wording(
            asks=("你喜欢{taste}吗", "你爱{taste}吗", "你觉得{taste}怎么样"), follows=("那{taste}呢", "{taste}呢"),
            restate="你问的是我喜不喜欢{taste}", short=("喜欢{taste}", "我喜欢{taste}"), full=("我很喜欢{taste}", "我觉得{taste}让人开心", "是的，{taste}很好"),
            details=("我只在书上读过", "很多人也这么说", "每个人的口味不同"),
        ),
    ),
    Intent(
        "wrong_answer", "talk",
        en=Wording(
            asks=("(that is|thats) (wrong|not right|not true|false|bad)", "you are wrong", "no thats wrong", "bad (answer|bot)", "are you sure", "i dont (believe|like) (you|it|that)", "you made a mistake", "really"),
            restate="You doubt my answer", short=("I may be wrong", "My mistake, maybe"), full=("I may have made a mistake there", "You may be right about that", "I am small and I do make mistakes"),
            details=("Your vote helps me to learn", "Please check it once more", "You can ask me again"),
        ),
        zh=Wording(
            asks=("不对", "错了", "你错了", "这不对", "你确定吗", "真的吗", "我不信", "回答得不好", "不是吧"),
            restate="你对我的回答有疑问", short=("可能是我错了", "也许错了"), full=("我那里可能弄错了", "你也许是对的", "我很小，会犯错"),
            details=("你的投票能帮我学习", "请再查一下", "你可以再问一次"),
        ),
    ),
    Intent(
        "praise", "talk",
        en=Wording(
            asks=("good (job|bot|answer|work)", "well done", "you are (great|smart|funny|nice|the best)", "(nice|cool|great|awesome|perfect|wow|lol|haha)", "i (like|love) you", "very good", "that was (good|funny|nice)"),
            restate="You said something nice", short=("Good to hear", "That is nice"), full=("That is good to hear", "I am still learning", "You make my day"),
            details=("A vote would say the same", "I do my best", "It was a good question"),
        ),
        zh=Wording(
            asks=("(真|好|太)棒[了]", "你真(聪明|好|棒|有趣)", "干得好", "不错", "厉害", "哈哈", "我喜欢你", "很好", "太好了"),
            restate="你夸了我", short=("听着不错", "那就好"), full=("听到这个真不错", "我还在学习", "你让我今天很开心"),
            details=("投个票也是一样", "我会尽力", "问题也问得好"),
        ),
    ),
    Intent(
        "yes", "talk", weight=1.0,
        en=Wording(
            asks=("yes", "yes please", "yeah", "ok", "okay", "sure", "yep", "of course", "alright", "go on", "i do", "yes i do", "right"),
            restate="You said yes", short=("Go ahead", "Ask away"), full=("Then tell me what you need", "Go ahead and ask", "Just type your next question"),
            details=("It can be about orders, facts or sums", "I am listening", "Take your time"),
        ),
        zh=Wording(
            asks=("是", "是的", "好", "好的", "嗯", "可以", "行", "对", "要", "好啊", "当然"),
            restate="你说了好", short=("请说", "请讲"), full=("那请告诉我你要什么", "请直接问吧", "请输入下一个问题"),
            details=("可以问订单、常识或算术", "我在听", "慢慢来"),
        ),
    ),
    Intent(
        "no", "talk", weight=1.0,
        en=Wording(
            asks=("no", "nope", "no thanks", "no thank you", "nothing", "not now", "nothing else", "nah", "not really", "never mind"),
            restate="You said no", short=("All right", "Fine by me"), full=("All right, then we are done", "That is fine", "Then I will wait here"),
            details=("You can come back any time", "I am here if something comes up", "There is no hurry"),
        ),
        zh=Wording(
            asks=("不", "不用[了]", "没有[了]", "不要", "不用谢谢", "没事了", "算了", "不了"),
            restate="你说了不用", short=("好吧", "没问题"), full=("好吧，那就这样", "那也没关系", "那我在这里等着"),
            details=("随时可以回来", "有事我都在", "不着急"),
        ),
    ),
    Intent(
        "languages", "talk", weight=0.6,
        en=Wording(
            asks=("do you speak (chinese|english)", "what languages do you (speak|know)", "can you speak (chinese|english)", "which languages do you (speak|know)", "can i write in (chinese|english)"),
            restate="You asked which languages I speak", short=("English and Chinese", "Two: English and Chinese"), full=("I speak English and Chinese", "You can write in English or in Chinese", "English and Chinese are my two languages"),
            details=("I answer in the language you write", "My Chinese is simple but it works"),
        ),
        zh=Wording(
            asks=("你会说(中文|英文|英语)吗", "你会(哪些|什么)语言", "你会讲(中文|英文|英语)吗", "可以用(中文|英文)吗"),
            restate="你问的是我会哪些语言", short=("英文和中文", "两种：英文和中文"), full=("我会说英文和中文", "你可以用英文或中文写", "英文和中文是我的两种语言"),
            details=("你用什么语言我就用什么语言", "我的英文很简单，但够用"),
        ),
    ),
    Intent(
        "unknown", "talk", weight=11.0,
        en=Wording(
            asks=(), restate="You asked about something that I do not know",
            short=("I do not know that", "Sorry, I do not know"),
            full=("I do not know about that, but I know orders, facts and sums", "That is outside of what I know", "I only know the shop, simple facts and sums"),
            details=("Try asking for the capital of Spain", "You can ask about orders, prices, animals or sums", "I am a small model and I know little"),
        ),
        zh=Wording(
            asks=(), restate="你问的事我不懂",
            short=("我不知道", "抱歉，我不懂"),
            full=("这个我不懂，但我懂订单、常识和算术", "这超出了我知道的范围", "我只知道商店、常识和算术"),
            details=("可以问我西班牙的首都", "你可以问订单、价格、动物或算术", "我是小模型，知道得不多"),
        ),
    ),
)  # fmt: skip
