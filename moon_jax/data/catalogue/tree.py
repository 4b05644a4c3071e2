"""The category tree: every leaf with its path, its nouns, its possible materials and its silhouette."""

import dataclasses
from collections.abc import Callable

from moon_jax.data.catalogue import shapes_gear as gear
from moon_jax.data.catalogue import shapes_home as home
from moon_jax.data.catalogue import shapes_wear as wear
from moon_jax.data.catalogue.sketch import Sketch, Vary
from moon_jax.data.catalogue.words import Word

Shape = Callable[[Sketch, Vary], None]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A deepest category: (industry, level 1 .. 4), the noun of one such product, materials it comes in."""

    path: tuple[str, str, str, str, str]
    noun: Word
    materials: tuple[str, ...]
    shape: Shape


def _leaf(path: str, plural: str, words: str, materials: str, shape: Shape) -> Leaf:
    industry, one, two, three = path.split(" / ")
    en, zh, other_en, other_zh = (tuple(language.split("|")) for language in words.split(" ; "))
    noun = Word(en[0], zh[0], other_en, other_zh)
    return Leaf((industry, one, two, three, plural), noun, tuple(materials.split()), shape)


_DRINK, _COOK = "Home / Kitchen / Drinkware", "Home / Kitchen / Cookware"
_SEAT, _TABLE = "Home / Furniture / Seating / Chairs", "Home / Furniture / Tables / Indoor tables"
_LAMP, _DECOR = "Home / Lighting / Lamps", "Home / Decoration / Accents"
_BEAUTY = "Beauty / Care / Cosmetics"
_TOP, _LOW = "Apparel / Clothing / Tops", "Apparel / Clothing / Bottoms"
_EXTRA = "Apparel / Accessories"
_SHOE, _BAG = "Shoes and bags / Footwear", "Shoes and bags / Luggage"
_TECH = "Electronics / Devices"
_SPORT, _TOY = "Sports and toys / Sports", "Sports and toys / Toys"

LEAVES: tuple[Leaf, ...] = (
    _leaf(f"{_DRINK} / Mugs", "Tea mugs",
          "tea mug ; 茶杯 ; teacup|cup for tea ; 泡茶杯子", "ceramic glass", home.tea_mug),
    _leaf(f"{_DRINK} / Mugs", "Coffee mugs",
          "coffee mug ; 马克杯 ; coffee cup|beaker ; 咖啡杯", "ceramic metal plastic", home.coffee_mug),
    _leaf(f"{_DRINK} / Mugs", "Travel mugs",
          "travel mug ; 随行杯 ; to-go cup|thermos cup ; 保温杯", "metal plastic", home.travel_mug),
    _leaf(f"{_DRINK} / Glasses", "Wine glasses",
          "wine glass ; 红酒杯 ; goblet ; 高脚杯", "glass plastic", home.wine_glass),
    _leaf(f"{_DRINK} / Glasses", "Tumblers",
          "tumbler ; 吸管杯 ; cup with a straw ; 带吸管的杯子", "glass plastic", home.tumbler),
    _leaf(f"{_COOK} / Pots", "Kettles",
          "kettle ; 烧水壶 ; water boiler ; 水壶", "metal ceramic", home.kettle),
    _leaf(f"{_COOK} / Pots", "Teapots",
          "teapot ; 茶壶 ; pot for tea ; 泡茶壶", "ceramic glass metal", home.teapot),
    _leaf(f"{_COOK} / Pans", "Saucepans",
          "saucepan ; 奶锅 ; cooking pot|milk pan ; 小锅", "metal ceramic", home.saucepan),
    _leaf(_SEAT, "Dining chairs",
          "dining chair ; 餐椅 ; kitchen chair ; 吃饭椅子", "wood plastic leather", home.dining_chair),
    _leaf(_SEAT, "Armchairs",
          "armchair ; 单人沙发 ; easy chair|reading chair ; 沙发椅", "leather cotton canvas", home.armchair),
    _leaf(_SEAT, "Stools",
          "stool ; 凳子 ; round seat ; 圆凳", "wood leather metal", home.stool),
    _leaf(_TABLE, "Side tables",
          "side table ; 边几 ; small round table ; 小圆桌", "wood metal plastic", home.side_table),
    _leaf(_TABLE, "Desks",
          "desk ; 书桌 ; work table ; 写字台", "wood metal", home.desk),
    _leaf(f"{_LAMP} / Standing", "Table lamps",
          "table lamp ; 台灯 ; bedside light ; 床头灯", "cotton glass metal", home.table_lamp),
    _leaf(f"{_LAMP} / Standing", "Floor lamps",
          "floor lamp ; 落地灯 ; standing light ; 立式灯", "metal cotton", home.floor_lamp),
    _leaf(f"{_LAMP} / Hanging", "Pendant lamps",
          "pendant lamp ; 吊灯 ; hanging light ; 餐厅灯", "metal glass plastic", home.pendant_lamp),
    _leaf(f"{_DECOR} / Vessels", "Vases",
          "vase ; 花瓶 ; flower holder ; 插花瓶", "ceramic glass metal", home.vase),
    _leaf(f"{_DECOR} / Vessels", "Plant pots",
          "plant pot ; 花盆 ; flower pot|planter ; 绿植盆", "ceramic plastic wood", home.plant_pot),
    _leaf(f"{_DECOR} / Soft furnishings", "Cushions",
          "cushion ; 抱枕 ; throw pillow ; 靠垫", "cotton knit leather", home.cushion),
    _leaf(f"{_DECOR} / Clocks", "Wall clocks",
          "wall clock ; 挂钟 ; clock for the wall ; 时钟", "wood metal plastic", home.wall_clock),
    _leaf(f"{_BEAUTY} / Scents", "Perfumes",
          "perfume bottle ; 香水 ; fragrance|scent ; 女香", "glass ceramic", home.perfume),
    _leaf(f"{_BEAUTY} / Make-up", "Lipsticks",
          "lipstick ; 口红 ; lip colour ; 唇膏", "plastic metal", home.lipstick),
    _leaf(f"{_BEAUTY} / Creams", "Cream jars",
          "face cream jar ; 面霜 ; moisturiser ; 保湿霜", "glass plastic", home.cream_jar),
    _leaf(f"{_BEAUTY} / Creams", "Lotion bottles",
          "lotion bottle ; 身体乳 ; body milk with pump ; 润肤露", "plastic glass", home.pump_bottle),
    _leaf(f"{_TOP} / Shirts", "T-shirts",
          "T-shirt ; T恤 ; tee|short sleeve top ; 短袖", "cotton knit", wear.t_shirt),
    _leaf(f"{_TOP} / Shirts", "Long-sleeve shirts",
          "long-sleeve shirt ; 长袖衬衫 ; button-up|blouse ; 衬衣", "cotton denim", wear.long_sleeve),
    _leaf(f"{_TOP} / Shirts", "Tank tops",
          "tank top ; 背心 ; sleeveless top|vest ; 无袖上衣", "cotton knit", wear.tank_top),
    _leaf(f"{_TOP} / Sweaters", "Hoodies",
          "hoodie ; 连帽卫衣 ; hooded sweater ; 帽衫", "cotton knit", wear.hoodie),
    _leaf(f"{_LOW} / Trousers", "Long trousers",
          "trousers ; 长裤 ; pants ; 裤子", "cotton denim leather", wear.trousers),
    _leaf(f"{_LOW} / Trousers", "Shorts",
          "shorts ; 短裤 ; short pants ; 五分裤", "cotton denim", wear.shorts),
    _leaf(f"{_LOW} / Skirts", "Flared skirts",
          "skirt ; 半身裙 ; flared skirt ; 裙子", "cotton denim leather", wear.skirt),
    _leaf("Apparel / Clothing / Dresses / Casual", "Summer dresses",
          "dress ; 连衣裙 ; frock ; 吊带裙", "cotton knit denim", wear.dress),
    _leaf(f"{_EXTRA} / Headwear / Hats", "Baseball caps",
          "baseball cap ; 棒球帽 ; peaked cap ; 鸭舌帽", "cotton denim canvas", wear.cap),
    _leaf(f"{_EXTRA} / Headwear / Hats", "Beanies",
          "beanie ; 毛线帽 ; bobble hat|woolly hat ; 绒球帽", "knit cotton", wear.beanie),
    _leaf(f"{_EXTRA} / Headwear / Hats", "Sun hats",
          "sun hat ; 遮阳帽 ; wide brim hat ; 大檐帽", "canvas cotton", wear.sun_hat),
    _leaf(f"{_EXTRA} / Small wear / Socks", "Crew socks",
          "sock ; 中筒袜 ; stocking ; 袜子", "cotton knit", wear.sock),
    _leaf(f"{_EXTRA} / Small wear / Ties", "Neckties",
          "necktie ; 领带 ; tie ; 正装领带", "cotton knit leather", wear.tie),
    _leaf(f"{_SHOE} / Closed shoes / Sports shoes", "Sneakers",
          "sneaker ; 运动鞋 ; trainer|running shoe ; 跑鞋", "canvas leather knit", wear.sneaker),
    _leaf(f"{_SHOE} / Closed shoes / Boots", "Ankle boots",
          "ankle boot ; 短靴 ; bootee ; 靴子", "leather canvas", wear.boot),
    _leaf(f"{_SHOE} / Open shoes / Pumps", "High heels",
          "high heel ; 高跟鞋 ; stiletto|pump ; 女鞋细跟", "leather denim", wear.high_heel),
    _leaf(f"{_SHOE} / Open shoes / Slides", "Slippers",
          "slipper ; 拖鞋 ; slide|flip-flop ; 凉拖", "plastic leather cotton", wear.slipper),
    _leaf(f"{_BAG} / Bags / Backpacks", "School backpacks",
          "backpack ; 双肩包 ; rucksack|school bag ; 书包", "canvas leather denim", wear.backpack),
    _leaf(f"{_BAG} / Bags / Hand bags", "Tote bags",
          "tote bag ; 托特包 ; shopper|shopping bag ; 购物袋", "canvas leather denim", wear.tote),
    _leaf(f"{_BAG} / Bags / Hand bags", "Handbags",
          "handbag ; 手提包 ; purse ; 女包", "leather canvas", wear.handbag),
    _leaf(f"{_BAG} / Cases / Trolleys", "Suitcases",
          "suitcase ; 行李箱 ; trolley|cabin case ; 拉杆箱", "plastic metal leather", wear.suitcase),
    _leaf(f"{_TECH} / Mobile / Phones", "Smartphones",
          "smartphone ; 智能手机 ; mobile phone ; 手机", "glass metal plastic", gear.smartphone),
    _leaf(f"{_TECH} / Mobile / Watches", "Smart watches",
          "smart watch ; 智能手表 ; fitness watch ; 运动手表", "plastic leather metal", gear.smart_watch),
    _leaf(f"{_TECH} / Computers / Portables", "Laptops",
          "laptop ; 笔记本电脑 ; notebook computer ; 手提电脑", "metal plastic", gear.laptop),
    _leaf(f"{_TECH} / Audio / Headsets", "Headphones",
          "headphones ; 头戴耳机 ; headset ; 耳机", "plastic metal leather", gear.headphones),
    _leaf(f"{_TECH} / Audio / Boxes", "Speakers",
          "speaker ; 音箱 ; loudspeaker ; 音响", "wood plastic metal", gear.speaker),
    _leaf(f"{_TECH} / Photo / Cameras", "Compact cameras",
          "camera ; 相机 ; photo camera ; 照相机", "plastic metal leather", gear.camera),
    _leaf(f"{_SPORT} / Balls / Team balls", "Footballs",
          "football ; 足球 ; soccer ball ; 训练足球", "leather plastic", gear.football),
    _leaf(f"{_SPORT} / Balls / Team balls", "Basketballs",
          "basketball ; 篮球 ; ball for hoops ; 训练篮球", "leather plastic", gear.basketball),
    _leaf(f"{_SPORT} / Gear / Rackets", "Tennis rackets",
          "tennis racket ; 网球拍 ; racquet ; 球拍", "metal plastic wood", gear.racket),
    _leaf(f"{_SPORT} / Gear / Boards", "Skateboards",
          "skateboard ; 滑板 ; board with wheels ; 双翘板", "wood plastic", gear.skateboard),
    _leaf(f"{_SPORT} / Gear / Weights", "Dumbbells",
          "dumbbell ; 哑铃 ; hand weight ; 健身铃", "metal plastic", gear.dumbbell),
    _leaf(f"{_SPORT} / Gear / Bottles", "Sports bottles",
          "water bottle ; 运动水壶 ; drinking flask ; 水杯", "metal plastic glass", gear.water_bottle),
    _leaf(f"{_TOY} / Outdoor / Kites", "Diamond kites",
          "kite ; 风筝 ; flying kite ; 纸鸢", "canvas plastic", gear.kite),
    _leaf(f"{_TOY} / Outdoor / Umbrellas", "Rain umbrellas",
          "umbrella ; 雨伞 ; brolly|parasol ; 晴雨伞", "canvas plastic", gear.umbrella),
    _leaf(f"{_TOY} / Indoor / Soft toys", "Teddy bears",
          "teddy bear ; 泰迪熊 ; plush bear|stuffed bear ; 毛绒熊", "cotton knit", gear.teddy_bear),
    _leaf(f"{_TOY} / Indoor / Vehicles", "Toy cars",
          "toy car ; 玩具车 ; model car ; 小汽车", "wood plastic metal", gear.toy_car),
)  # fmt: skip
