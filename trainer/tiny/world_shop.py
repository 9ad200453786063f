"""The shop: orders, prices, stock, hours, returns, delivery. Data only."""

# ruff: noqa: E501 -- tables of phrases: one row a kind, so that the languages can be read side by side

from trainer.tiny.intent import Intent, Wording
from trainer.tiny.lexicon import DAYS, ITEMS

_SHOP_DETAILS = ("You can also see it on our website", "Ask me again at any time", "It is the same for everyone")
_SHOP_DETAILS_ZH = ("网站上也能看到", "随时可以再问我", "对所有人都一样")
_ORDER_DETAILS = ("I looked it up just now", "You will get a message when it changes", "Please keep the number")
_ORDER_DETAILS_ZH = ("我刚刚查过", "有变化会通知", "请留好号码")


def _in_stock(item: str, column: int, value: str) -> str:
    stocked = (ITEMS[item][2], ITEMS[item][3])[column].split()
    return "in stock" if value in stocked else "sold out"


SHOP: tuple[Intent, ...] = (
    Intent(
        "order_status", "shop", answer="status", slots=("order",), weight=3.0,
        en=Wording(
            asks=("where is my order[ {order}]", "wheres my order[ {order}]", "what is the status of[ my] order[ {order}]", "(track|check)[ my] order[ {order}]", "when will my order[ {order}] (come|arrive)", "order status", "has[ my] order {order} (shipped|arrived)", "my order[ {order}] (did not|didnt) (come|arrive)", "any news (on|about) order {order}"),
            restate="You asked about order {order}", short=("{status}", "It is {status}"), full=("Your order {order} is {status}", "Order {order} is now {status}", "I see that order {order} is {status}"),
            details=_ORDER_DETAILS,
        ),
        zh=Wording(
            asks=("我的订单[{order}](在哪里|到哪了|怎么样了|什么时候到)", "订单{order}(在哪里|到哪了|怎么样了|什么时候到)", "(查|查一下)[我的]订单[{order}]", "订单[{order}]还没到"),
            restate="你问的是订单{order}", short=("{status}", "订单{status}"), full=("订单{order}{status}", "你的订单{order}现在{status}", "我查到订单{order}{status}"),
            details=_ORDER_DETAILS_ZH,
        ),
    ),
    Intent(
        "order_missing", "shop", slots=("order",), weight=0.0,
        en=Wording(
            asks=(), restate="You asked about order {order}", short=("I cannot see it", "No such order here"),
            full=("I cannot find order {order}", "Order {order} is not in my list", "I do not see order {order} here"),
            details=("Please check the number once more", "The shop can look it up for you", "It may be a typing error"),
        ),
        zh=Wording(
            asks=(), restate="你问的是订单{order}", short=("我看不到", "这里没有这个订单"),
            full=("我找不到订单{order}", "订单{order}不在我的单子里", "我这里没有订单{order}"),
            details=("请再看一下号码", "店里可以帮忙查", "可能是打错了"),
        ),
    ),
    Intent(
        "order_need_number", "shop", weight=0.0,
        en=Wording(
            asks=(), restate="You asked about your order", short=("Send me the order number", "I need the number"),
            full=("Please tell me your order number", "I need your order number for that", "Type the order number and I will look"),
            details=("It has four digits", "You will find it in your mail", "Then I can look it up"),
        ),
        zh=Wording(
            asks=(), restate="你问的是你的订单", short=("请发订单号", "我需要订单号"),
            full=("请告诉我订单号", "这个需要你的订单号", "输入订单号，我来查"),
            details=("它有四位数字", "邮件里可以找到", "然后我就能查"),
        ),
    ),
    Intent(
        "order_noted", "shop", slots=("order",), weight=1.5,
        en=Wording(
            asks=("my order number is {order}", "my order is {order}", "it is {order}", "its {order}", "order {order}", "{order}", "the number is {order}", "i have order {order}", "order number {order}"),
            restate="You gave me order {order}", short=("Order {order}, noted", "Noted"), full=("I have noted order {order}", "Order {order}, I will remember that", "Now I know your order {order}"),
            details=("You can ask where it is", "I keep it while we talk", "It has four digits, good"),
        ),
        zh=Wording(
            asks=("我的订单号是{order}", "订单号{order}", "订单{order}", "号码是{order}", "是{order}", "我的订单是{order}"),
            restate="你给了我订单{order}", short=("订单{order}，记下了", "记下了"), full=("我记下了订单{order}", "订单{order}，我会记住", "现在我知道你的订单{order}了"),
            details=("你可以问它在哪里", "聊天时我会记着", "四位数字，没错"),
        ),
    ),
    Intent(
        "order_recall", "shop", answer="order", weight=1.0,
        en=Wording(
            asks=("what (was|is) my order number", "whats my order number", "do you remember my order[ number]", "which order did i (mean|say|give you)", "tell me my order number"),
            restate="You asked for your order number", short=("{order}", "It is {order}"), full=("Your order number is {order}", "You gave me number {order}", "We talked about order {order}"),
            details=("You said it earlier", "I kept it in mind", "Please keep the number"),
        ),
        zh=Wording(
            asks=("我的订单号是(多少|什么)", "你记得我的订单[号]吗", "我刚才说的订单号是多少", "我的订单号呢"),
            restate="你问的是你的订单号", short=("{order}", "是{order}"), full=("你的订单号是{order}", "你给我的号码是{order}", "我们说的是订单{order}"),
            details=("你刚才说过", "我一直记着", "请留好号码"),
        ),
    ),
    Intent(
        "order_cancel", "shop", slots=("order",), weight=1.0,
        en=Wording(
            asks=("cancel[ my] order[ {order}]", "(i want to|can i|how do i|please) cancel[ my] order[ {order}]", "stop[ my] order {order}"),
            restate="You want to cancel order {order}", short=("Order {order}, cancelled", "Cancelled"), full=("I have cancelled order {order}", "Order {order} is cancelled now", "Your order {order} will not be sent"),
            details=("The money comes back in 5 days", "You can order again at any time", "You will get a message"),
        ),
        zh=Wording(
            asks=("取消[我的]订单[{order}]", "(我想|我要|怎么|可以)取消[我的]订单[{order}]", "我不要订单{order}了"),
            restate="你要取消订单{order}", short=("订单{order}，已取消", "已取消"), full=("我取消了订单{order}", "订单{order}已经取消", "订单{order}不会寄出了"),
            details=("五天内退款", "随时可以再下单", "会有消息通知"),
        ),
    ),
    Intent(
        "price", "shop", slots=("item",), answer="price", right=lambda s: str(ITEMS[s["item"]][1]), weight=3.0,
        en=Wording(
            asks=("how much (is|does) (the|a) {item}[ cost]", "what is the price of (the|a) {item}", "what does (the|a) {item} cost", "price of (the|a) {item}", "{item} price", "whats the price of the {item}", "how expensive is the {item}", "i want to (buy|know the price of) (the|a) {item}"),
            follows=("and the {item}", "what about the {item}", "how about (the|a) {item}", "and for (the|a) {item}"),
            restate="You asked for the price of the {item}", short=("{price} euros", "It is {price} euros"), full=("The {item} costs {price} euros", "The price of the {item} is {price} euros", "You pay {price} euros for the {item}"),
            details=("That includes the tax", *_SHOP_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("{item}多少钱", "{item}(怎么卖|什么价格)", "{item}的价格[是多少]", "{item}贵吗", "我想买{item}", "一(个|件){item}多少钱"), follows=("那{item}呢", "{item}呢"),
            restate="你问的是{item}的价格", short=("{price}欧元", "是{price}欧元"), full=("{item}{price}欧元", "{item}的价格是{price}欧元", "买{item}要{price}欧元"),
            details=("已经含税", *_SHOP_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "stock_colour", "shop", slots=("item", "colour"), answer="stock", right=lambda s: _in_stock(s["item"], 0, s["colour"]), weight=2.5,
        en=Wording(
            asks=("do you have the {item} in {colour}", "is there a {colour} {item}", "does the {item} come in {colour}", "can i get the {item} in {colour}", "do you (have|sell) a {colour} {item}", "{colour} {item}"),
            follows=("and in {colour}", "in {colour}", "what about {colour}", "and the {item} in {colour}"),
            restate="You asked for a {colour} {item}", short=("{stock}", "It is {stock}"), full=("The {colour} {item} is {stock}", "The {item} in {colour} is {stock}", "In {colour} the {item} is {stock}"),
            details=_SHOP_DETAILS,
        ),
        zh=Wording(
            asks=("有{colour}的{item}吗", "{item}有{colour}的吗", "{colour}的{item}有[货]吗", "{item}有{colour}吗", "{colour}{item}"), follows=("那{colour}的呢", "{colour}的呢", "{colour}呢"),
            restate="你问的是{colour}的{item}", short=("{stock}", "现在{stock}"), full=("{colour}的{item}{stock}", "{item}的{colour}款{stock}", "{colour}的{item}现在{stock}"),
            details=_SHOP_DETAILS_ZH,
        ),
    ),
    Intent(
        "stock_size", "shop", slots=("item", "size"), answer="stock", right=lambda s: _in_stock(s["item"], 1, s["size"]), weight=2.0,
        en=Wording(
            asks=("do you have the {item} in[ size] {size}", "is there a {size} {item}", "does the {item} come in[ size] {size}", "can i get the {item} in[ size] {size}", "do you (have|sell) a {size} {item}", "{size} {item}"),
            follows=("and in {size}", "in {size}", "what about {size}", "and the {item} in {size}"),
            restate="You asked for a {size} {item}", short=("{stock}", "It is {stock}"), full=("The {size} {item} is {stock}", "The {item} in {size} is {stock}", "In {size} the {item} is {stock}"),
            details=_SHOP_DETAILS,
        ),
        zh=Wording(
            asks=("有{size}的{item}吗", "{item}有{size}的吗", "{size}的{item}有[货]吗", "{item}有{size}吗", "{size}{item}"), follows=("那{size}的呢", "{size}的呢", "{size}呢"),
            restate="你问的是{size}的{item}", short=("{stock}", "现在{stock}"), full=("{size}的{item}{stock}", "{item}的{size}{stock}", "{size}的{item}现在{stock}"),
            details=_SHOP_DETAILS_ZH,
        ),
    ),
    Intent(
        "opening", "shop", slots=("day",), answer="openness", right=lambda s: "closed" if s["day"] == DAYS[6] else "open", weight=1.5,
        en=Wording(
            asks=("are you open on {day}[s]", "is the shop open on {day}[s]", "do you open on {day}[s]", "can i come on {day}", "{day} opening hours"), follows=("and on {day}", "what about {day}", "and {day}"),
            restate="You asked about {day}", short=("{openness}", "We are {openness}"), full=("On {day} we are {openness}", "The shop is {openness} on {day}", "We are {openness} on {day}"),
            details=_SHOP_DETAILS,
        ),
        zh=Wording(
            asks=("{day}(开门|营业|开)吗", "你们{day}(开门|营业)吗", "{day}可以来吗"), follows=("那{day}呢", "{day}呢"),
            restate="你问的是{day}", short=("{openness}", "我们{openness}"), full=("{day}我们{openness}", "{day}店里{openness}", "我们在{day}{openness}"),
            details=_SHOP_DETAILS_ZH,
        ),
    ),
    Intent(
        "hours", "shop", answer="n", right=lambda s: "6", weight=1.5,
        en=Wording(
            asks=("when (are you|do you|does the shop) (open|close)", "what are (your|the) opening hours", "opening hours", "until when are you open", "when is the shop open", "what time do you (open|close)"),
            restate="You asked for our hours", short=("9 to {n}", "From 9 to {n}"), full=("We are open from 9 to {n}", "The shop opens at 9 and closes at {n}", "You can come between 9 and {n}"),
            details=("Sunday is our day off", *_SHOP_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("[你们|店里]几点(开门|关门)", "[你们]什么时候(开门|关门|营业)", "营业时间[是什么]", "[你们]几点下班"),
            restate="你问的是营业时间", short=("9点到{n}点", "从9点到{n}点"), full=("我们9点到{n}点营业", "店里9点开门，{n}点关门", "9点到{n}点都可以来"),
            details=("星期天休息", *_SHOP_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "returns", "shop", answer="n", right=lambda s: "30", weight=1.5,
        en=Wording(
            asks=("can i return (it|this|something|an item)", "how do i return (it|this|something|an item)", "what is your return policy", "return policy", "i want to (return|send back) (it|this|something|the {item})", "how long can i return things", "returns", "it does not fit", "can i return the {item}"),
            restate="You asked about returns", short=("{n} days", "Within {n} days"), full=("You can return it within {n} days", "Returns are free for {n} days", "We take things back for {n} days"),
            details=("Please keep the receipt", "The label is in the box", "The money comes back in 5 days"),
        ),
        zh=Wording(
            asks=("(可以|能)退货吗", "怎么退货", "退货政策[是什么]", "我(想|要)退货", "多久可以退货", "不合身", "我(想|要)退{item}", "退货"),
            restate="你问的是退货", short=("{n}天", "{n}天内"), full=("{n}天内可以退货", "{n}天内免费退货", "我们接受{n}天内的退货"),
            details=("请留好小票", "标签在盒子里", "五天内退款"),
        ),
    ),
    Intent(
        "refund", "shop", answer="n", right=lambda s: "5",
        en=Wording(
            asks=("when do i get my (money|refund)[ back]", "where is my (money|refund)", "how long does a refund take", "i want my money back", "refund", "can i get a refund"),
            restate="You asked about your refund", short=("{n} days", "In {n} days"), full=("The refund takes {n} days", "Your money comes back in {n} days", "You will have the money in {n} days"),
            details=("It goes back the way it came", "Your bank sends a message", "We send it as soon as we can"),
        ),
        zh=Wording(
            asks=("什么时候退款", "退款要多久", "我的退款(在哪里|呢)", "我(想|要)退款", "可以退款吗", "退款"),
            restate="你问的是退款", short=("{n}天", "要{n}天"), full=("退款需要{n}天", "钱会在{n}天内退回", "{n}天内你会收到钱"),
            details=("原路退回", "银行会发消息", "我们会尽快"),
        ),
    ),
    Intent(
        "delivery_time", "shop", answer="n", right=lambda s: "3", weight=1.5,
        en=Wording(
            asks=("how long does (delivery|shipping) take", "how fast is (delivery|shipping)", "(delivery|shipping) time", "when will it (come|arrive)", "how many days (for|until) delivery"),
            restate="You asked about the delivery time", short=("{n} days", "About {n} days"), full=("Delivery takes {n} days", "It will be there in {n} days", "We deliver within {n} days"),
            details=("The driver rings twice", "We send you a link to follow it", "It is quicker in the city"),
        ),
        zh=Wording(
            asks=("(送货|快递|配送)要(多久|几天)", "多久(能到|到货|送到)", "几天(能到|到货|送到)", "什么时候(能到|到货|送到)"),
            restate="你问的是送货时间", short=("{n}天", "大约{n}天"), full=("送货需要{n}天", "{n}天后就到", "我们{n}天内送到"),
            details=("快递员会打电话", "会发链接给你", "市内更快"),
        ),
    ),
    Intent(
        "delivery_cost", "shop", answer="price", right=lambda s: "4",
        en=Wording(
            asks=("how much is (delivery|shipping)", "what does (delivery|shipping) cost", "is (delivery|shipping) free", "(delivery|shipping) (cost|costs|price)", "do i pay for (delivery|shipping)"),
            restate="You asked what delivery costs", short=("{price} euros", "It is {price} euros"), full=("Delivery costs {price} euros", "You pay {price} euros for delivery", "We bring it for {price} euros"),
            details=("It is free above 50 euros", *_SHOP_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("运费[是](多少|多少钱)", "(送货|快递)(多少钱|要钱吗)", "包邮吗", "免运费吗", "运费"),
            restate="你问的是运费", short=("{price}欧元", "是{price}欧元"), full=("运费是{price}欧元", "送货要{price}欧元", "付{price}欧元就送到家"),
            details=("满50欧元免运费", *_SHOP_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "payment", "shop",
        en=Wording(
            asks=("how can i pay", "can i pay (by|with) (card|cash|phone)", "what payment (methods|options) do you (take|have|accept)", "do you (take|accept) (cards|cash|credit cards)", "payment[ methods]"),
            restate="You asked how to pay", short=("Card or cash", "Card, cash or phone"), full=("You can pay by card, cash or phone", "We take cards and cash", "Card, cash and phone all work"),
            details=("You pay when you order", *_SHOP_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("怎么(付款|付钱|支付)", "可以(刷卡|付现金|用手机付|用卡付)吗", "有哪些付款方式", "付款方式", "支持刷卡吗"),
            restate="你问的是付款方式", short=("刷卡或现金", "刷卡、现金或手机"), full=("你可以刷卡、付现金或用手机", "我们收卡和现金", "刷卡、现金和手机都行"),
            details=("下单时付款", *_SHOP_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "damaged", "shop",
        en=Wording(
            asks=("my {item} is (broken|damaged)", "the {item} (arrived|came) (broken|damaged)", "it (is|arrived) (broken|damaged)", "i got the wrong (item|colour|color|size|thing)", "(something|a part) is missing", "my {item} has a hole", "there is a problem with my order"),
            restate="You have a problem with an item", short=("We will replace it", "A new one is coming"), full=("We will send you a new one", "We will replace it for free", "That should not happen, a new one is coming"),
            details=("You may keep the old one", "Please send us a photo", "It ships tomorrow"),
        ),
        zh=Wording(
            asks=("我的{item}(坏了|破了)", "收到的{item}是坏的", "东西(坏了|破了)", "发错(货|颜色|尺寸)了", "少了一件", "我的订单有问题", "{item}有个洞"),
            restate="你的东西有问题", short=("我们换新的", "新的会寄来"), full=("我们会寄一个新的", "我们免费换货", "这不应该，新的马上寄来"),
            details=("旧的可以留着", "请发一张照片", "明天就寄"),
        ),
    ),
    Intent(
        "human", "shop", weight=0.8,
        en=Wording(
            asks=("can i (talk|speak) to a (human|person)", "i want (a|to talk to a|to speak to a) (human|person)", "(human|agent)", "what is your phone number", "how can i (contact|call|reach) you", "contact", "can i call you"),
            restate="You want to reach a person", short=("Call 5550", "Phone 5550"), full=("You can call us at 5550", "A person answers at 5550", "Our phone number is 5550"),
            details=("The line is open from 9 to 6", "The wait is short", "They know more than I do"),
        ),
        zh=Wording(
            asks=("(我要|我想|可以)(找|转)人工[吗]", "人工[客服]", "你们的电话[是多少]", "怎么联系(你们|客服)", "有电话吗"),
            restate="你想联系人工", short=("请打5550", "电话5550"), full=("你可以打电话5550", "5550有人接电话", "我们的电话是5550"),
            details=("9点到6点有人", "等的时间很短", "他们比我懂得多"),
        ),
    ),
    Intent(
        "discount", "shop", answer="n", right=lambda s: "10",
        en=Wording(
            asks=("do you have (a|any) (discount|discounts|sale)", "is there a (discount|sale|coupon)", "any (discount|sale|coupon|discounts)", "can i get a discount", "discount[ code]", "that is (too|very) expensive", "(thats|its) (too|very) expensive"),
            restate="You asked for a discount", short=("{n} percent", "Yes, {n} percent"), full=("You get {n} percent off today", "There is a discount of {n} percent", "Today all items are {n} percent off"),
            details=("The code is KUDOS", "It ends on Sunday", "It works on all items"),
        ),
        zh=Wording(
            asks=("有(折扣|优惠|打折)吗", "(可以|能)(便宜点|打折)吗", "[现在]打折吗", "太贵了", "有优惠券吗", "优惠"),
            restate="你问的是优惠", short=("优惠{n}%", "有，{n}%"), full=("今天优惠{n}%", "现在有{n}%的优惠", "全部商品优惠{n}%"),
            details=("优惠码是KUDOS", "星期天结束", "所有商品都能用"),
        ),
    ),
    Intent(
        "what_sold", "shop", weight=1.2,
        en=Wording(
            asks=("what do you (sell|have)", "what can i buy[ here]", "what (items|products|things) do you (have|sell)", "show me (your|the) (items|products|things|shop)", "i want to buy something", "i need a (present|gift)"),
            restate="You asked what we sell", short=("Shirts, hats, mugs and more", "Clothes, bags and gifts"), full=("We sell shirts, jackets, hats and scarves", "You will find clothes, mugs, lamps and bags here", "Our shop has clothes, gifts and bags"),
            details=("The scarf is a good gift", *_SHOP_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("你们卖什么", "有什么(商品|东西|卖的)", "(可以|能)买什么", "我想买[点]东西", "我想买[一个|个]礼物", "你们有什么"),
            restate="你问的是我们卖什么", short=("衬衫、帽子、杯子等", "衣服、包和礼物"), full=("我们卖衬衫、夹克、帽子和围巾", "这里有衣服、杯子、台灯和包", "我们店里有衣服、礼物和包"),
            details=("围巾是不错的礼物", *_SHOP_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "which_shop", "shop", answer="shop", weight=1.2,
        en=Wording(
            asks=("what shop is this", "which shop is this", "what is the name of (the|this|your) shop", "whats the shop called", "where am i", "what is this shop called", "what store is this"),
            restate="You asked which shop this is", short=("{shop}", "It is {shop}"), full=("This is the shop {shop}", "Our shop is called {shop}", "You are talking to {shop}"),
            details=("We have been here for years", *_SHOP_DETAILS[:2]),
        ),
        zh=Wording(
            asks=("这是(什么|哪家)店", "你们店叫什么[名字]", "店名是什么", "你们是哪家店"),
            restate="你问的是这是哪家店", short=("{shop}", "是{shop}"), full=("这家店叫{shop}", "我们店的名字是{shop}", "这里是{shop}"),
            details=("我们开了很多年", *_SHOP_DETAILS_ZH[:2]),
        ),
    ),
    Intent(
        "shop_elsewhere", "shop", weight=0.0,
        en=Wording(
            asks=(), restate="You asked about the shop", short=("I only teach", "Not my subject"),
            full=("I am a teacher, so I do not know the shop", "The shop can tell you that, I only teach", "That is for the shop, I teach facts and sums"),
            details=("Ask me about capitals or sums", "I know animals, days and words", "Numbers are my strong side"),
        ),
        zh=Wording(
            asks=(), restate="你问的是商店的事", short=("我只教书", "这不是我的课"),
            full=("我是老师，不了解商店", "这要问商店，我只教书", "这是商店的事，我教常识和算术"),
            details=("可以问我首都或算术", "我知道动物、星期和单词", "数字是我的强项"),
        ),
    ),
)  # fmt: skip
