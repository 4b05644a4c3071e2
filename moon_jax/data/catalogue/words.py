"""The words of the catalogue: each attribute value in English and Chinese, with what shoppers say instead."""

import dataclasses

LANGUAGES = ("en", "zh")


@dataclasses.dataclass(frozen=True)
class Word:
    """A value: its name in records and English titles, in Chinese titles, and shoppers' other words for it."""

    en: str
    zh: str
    other_en: tuple[str, ...] = ()
    other_zh: tuple[str, ...] = ()

    def title(self, language: str) -> str:
        """Returns the word as a title writes it."""
        return self.en if language == "en" else self.zh

    def shopper(self, language: str) -> tuple[str, ...]:
        """Returns the words that a shopper may use, the title's own last."""
        return (*self.other_en, self.en) if language == "en" else (*self.other_zh, self.zh)


def _words(*rows: tuple[str, str, str, str]) -> dict[str, Word]:
    table = {}
    for en, zh, other_en, other_zh in rows:
        table[en] = Word(en, zh, *(tuple(filter(None, other.split("|"))) for other in (other_en, other_zh)))
    return table


COLORS = _words(
    ("red", "红色", "crimson|scarlet", "大红|正红"),
    ("orange", "橙色", "tangerine", "橘色|橘红"),
    ("yellow", "黄色", "lemon coloured", "明黄|柠檬黄"),
    ("green", "绿色", "emerald|grass green", "草绿|翠绿"),
    ("teal", "青色", "turquoise|blue green", "湖蓝|孔雀绿"),
    ("blue", "蓝色", "royal blue", "宝蓝|天蓝"),
    ("purple", "紫色", "violet|lilac", "罗兰紫"),
    ("pink", "粉色", "rose coloured", "粉红|樱花粉"),
    ("brown", "棕色", "chocolate|tan", "咖啡色|褐色"),
    ("black", "黑色", "jet black", "纯黑|曜石黑"),
    ("white", "白色", "ivory|off-white", "米白|纯白"),
    ("grey", "灰色", "gray|ash coloured", "烟灰|浅灰"),
)
PATTERNS = _words(
    ("solid", "纯色", "plain|one colour", "素色|单色"),
    ("horizontal stripes", "横条纹", "striped|breton stripes", "条纹|横纹"),
    ("vertical stripes", "竖条纹", "pinstriped|upright stripes", "竖纹|直条纹"),
    ("diagonal stripes", "斜条纹", "slanted stripes", "斜纹图案"),
    ("polka dots", "波点", "dotted|spotted", "圆点|点点"),
    ("checks", "格纹", "checked|plaid", "格子|方格"),
    ("zigzag", "锯齿纹", "chevron", "人字纹|波浪线"),
    ("star print", "星星图案", "starry|with little stars", "五角星|星星"),
    ("floral print", "碎花", "flowery|with flowers", "花朵|小花"),
)
MATERIALS = _words(
    ("ceramic", "陶瓷", "china|porcelain", "瓷"),
    ("glass", "玻璃", "see-through glass", "透明玻璃"),
    ("metal", "金属", "steel|aluminium", "不锈钢|铝制"),
    ("wood", "木质", "wooden|timber", "木头|实木"),
    ("plastic", "塑料", "synthetic", "塑胶"),
    ("leather", "皮革", "hide", "真皮|皮质"),
    ("cotton", "棉", "soft cotton", "纯棉"),
    ("denim", "牛仔布", "jeans fabric", "牛仔|丹宁"),
    ("knit", "针织", "knitted|woolly", "毛线|毛织"),
    ("canvas", "帆布", "sturdy cloth", "厚布"),
)
STYLES = _words(
    ("minimalist", "极简风", "simple|clean", "简约|简单"),
    ("classic", "经典款", "timeless|traditional", "百搭|传统"),
    ("sporty", "运动风", "athletic", "运动|活力"),
    ("elegant", "优雅", "stylish|chic", "气质|高级感"),
    ("cute", "可爱", "sweet|kawaii", "萌|少女"),
    ("vintage", "复古", "retro|old-school", "怀旧|老式"),
)
SIZES = _words(
    ("slim", "修长款", "narrow|thin", "窄|瘦"),
    ("regular", "标准款", "normal size|standard", "普通|常规"),
    ("wide", "加宽款", "broad|extra width", "宽|大号"),
)
BRANDS = _words(
    ("Lumo", "路墨", "", ""),
    ("Hexa", "六角", "", ""),
    ("Nordika", "北岛", "", ""),
    ("Pixio", "皮西", "", ""),
    ("Velora", "薇洛", "", ""),
    ("Castor", "河狸家", "", ""),
    ("Moonrise", "月升", "", ""),
    ("Tridenta", "三叉", "", ""),
    ("Solano", "日光", "", ""),
    ("Kiteworks", "风筝坊", "", ""),
    ("Amora", "爱慕拉", "", ""),
    ("Crossley", "十字里", "", ""),
    ("Zagato Lane", "闪电巷", "", ""),
    ("Orbit", "环轨", "", ""),
    ("Twinbar", "双杠", "", ""),
    ("Starling", "星椋", "", ""),
)
DEMOGRAPHICS = _words(
    ("women", "女士", "ladies|her", "女款|女生"),
    ("men", "男士", "gents|him", "男款|男生"),
    ("kids", "儿童", "children|my little one", "小孩|宝宝"),
    ("students", "学生", "school|teens", "学生党|校园"),
    ("seniors", "长辈", "grandparents|older people", "老人|爸妈"),
)
OCCASIONS = _words(
    ("summer", "夏季", "hot days", "夏天"),
    ("winter", "冬季", "cold days", "冬天"),
    ("gift", "送礼", "birthday present", "生日礼物"),
    ("travel", "旅行", "trips|on the road", "出差|出游"),
    ("office", "办公", "work|the desk", "上班|工作"),
    ("party", "聚会", "celebrations", "派对"),
    ("everyday", "日常", "daily use", "每天用"),
)
MODIFIERS = _words(
    ("foldable", "可折叠", "folds up", "折叠"),
    ("handmade", "手工", "hand crafted", "手作"),
    ("lightweight", "轻便", "light|not heavy", "轻"),
    ("waterproof", "防水", "rain proof", "不怕水"),
    ("limited edition", "限量版", "special edition", "限定"),
    ("recycled", "环保", "eco friendly", "再生材料"),
    ("premium", "高端", "luxury|high end", "高档"),
)
VALUES = {
    "color": COLORS,
    "category_modifier": MODIFIERS,
    "brand": BRANDS,
    "size_specification": SIZES,
    "material": MATERIALS,
    "style_elements": PATTERNS,
    "fashion_style": STYLES,
    "target_demographic": DEMOGRAPHICS,
    "season_occasion": OCCASIONS,
}  # MBE's ten attributes but for "category", whose value is the leaf's noun
