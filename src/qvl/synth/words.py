"""Words for signs, receipts and pages. Short and common; none of them is anybody's name or brand."""

SHOPS = (
    "CORNER MART", "GREEN CAFE", "CITY BOOKS", "SUN BAKERY", "PARK KIOSK", "RIVER FOODS", "BLUE DELI", "STAR SHOP",
    "OLD MILL", "TEA HOUSE", "FARM STORE", "NOODLE BAR", "HARBOR GRILL", "TOOL DEPOT", "PAPER AND INK", "MOON DINER",
)  # fmt: skip
ITEMS = (
    "MILK", "BREAD", "EGGS", "TEA", "COFFEE", "APPLE", "RICE", "SOAP", "CAKE", "JUICE", "WATER", "SALT", "PASTA",
    "CHEESE", "BUTTER", "SOUP", "HONEY", "LEMON", "PEARS", "BEANS", "OIL", "HAM", "FISH", "NUTS", "PEN", "BOOK",
)  # fmt: skip
CITIES = (
    "OSLO",
    "SEOUL",
    "LIMA",
    "PARIS",
    "CAIRO",
    "DELHI",
    "ROME",
    "QUITO",
    "TOKYO",
    "MALMO",
    "BUSAN",
    "LYON",
)
NAMES = (
    "KIM",
    "LEE",
    "ANNA",
    "OMAR",
    "NINA",
    "JOSE",
    "MEI",
    "IVAN",
    "SARA",
    "TOM",
    "AIKO",
    "LENA",
    "PAUL",
    "RUTH",
)
COMMON = (
    "the", "quick", "small", "green", "paper", "river", "night", "table", "light", "music", "train", "window", "stone",
    "garden", "letter", "market", "number", "orange", "people", "winter", "summer", "bridge", "camera", "doctor",
    "energy", "family", "ground", "house", "island", "jacket", "kitchen", "lemon", "morning", "north", "office",
    "pencil", "quiet", "road", "school", "travel", "under", "valley", "water", "yellow", "zebra", "open", "close",
    "early", "late", "after", "before", "every", "first", "second", "third", "still", "again", "never", "always",
)  # fmt: skip
KOREAN = (
    "안녕하세요",
    "영수증",
    "합계",
    "우유",
    "사과",
    "서울",
    "부산",
    "커피",
    "감사합니다",
    "학교",
    "도서관",
    "시장",
    "병원",
    "출구",
)
CHINESE = (
    "你好",
    "收据",
    "合计",
    "牛奶",
    "苹果",
    "北京",
    "上海",
    "咖啡",
    "谢谢",
    "学校",
    "图书馆",
    "市场",
    "医院",
    "出口",
)
