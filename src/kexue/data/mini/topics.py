"""Look-alikes of TNEWS (short titles, 15 classes) and IFLYTEK (app descriptions, 12 of 119).

A title is opener + subject + predicate + closer; subject and predicate come from the class, opener
and closer say nothing about it. A description strings together features of its class.
"""

from functools import partial

from kexue.data.mini.source import Row, Source

__all__ = ["APPS", "NEWS", "iflytek", "tnews"]

NEWS: dict[str, tuple[str, str, str]] = {  # code: (description, subjects, predicates)
    "100": (
        "news_story",
        "老奶奶 穷书生 小裁缝 守塔人 摆渡老人 卖花姑娘 砍柴少年 村口的老木匠",
        "在山里救下一只狐狸 说出了藏了三十年的秘密 半夜听见有人敲门 终于等到远方的来信 "
        "把最后一碗饭给了陌生人 临终前留下一只木箱",
    ),
    "101": (
        "news_culture",
        "青花瓷 古琴 皮影戏 书法作品 民间剪纸 甲骨文 木版年画 出土的青铜器",
        "传承了千年的手艺 藏着古人的智慧 在博物馆首次展出 让收藏家爱不释手 "
        "成为非遗文化的代表 背后的历史典故",
    ),
    "102": (
        "news_entertainment",
        "新晋影后 当红歌手 男主角 喜剧演员 女明星 偶像组合 选秀冠军 知名导演",
        "晒出婚礼照片 新剧即将开播 红毯造型惊艳 演唱会门票秒光 综艺里首谈恋情 新电影票房大卖",
    ),
    "103": (
        "news_sports",
        "中场球员 主队 女排姑娘 短跑名将 乒乓小将 老门将 三分射手 马拉松选手",
        "决赛绝杀对手 连续五场比赛不败 因伤缺席联赛 打破赛季纪录 夺得冠军奖杯 被教练换下场",
    ),
    "104": (
        "news_finance",
        "央行 人民币汇率 理财产品 银行存款利率 黄金价格 小微贷款 保险资金 跨境电商税",
        "再次下调 本月出现新变化 将影响你的钱包 迎来监管新规 规模突破百亿元 让储户坐不住了",
    ),
    "106": (
        "news_house",
        "二手房 新楼盘 学区房 公寓房租 首套房房贷 小户型 售楼处 精装修样板间",
        "三天卖出八十套 每平米降了两千 装修时要避开的坑 买家排队看房 限购政策松动 开发商连夜涨价",
    ),
    "107": (
        "news_car",
        "国产SUV 新款轿车 电动车 七座越野 自动挡小车 混动车型 新能源跑车 手动挡皮卡",
        "百公里油耗曝光 试驾感受如何 发动机动力更强 底盘和内饰全面升级 十万元起售 刹车测试排第一",
    ),
    "108": (
        "news_edu",
        "高考生 班主任 小学语文 研究生复试 家长群 英语四级 大学录取线 幼儿园老师",
        "公布最新分数 教你提高成绩 开学前要做好准备 作业太多引争议 教材迎来调整 考试重点整理",
    ),
    "109": (
        "news_tech",
        "折叠屏手机 人工智能 国产芯片 量子计算机 云服务器 智能手表 操作系统 无线耳机",
        "发布全新版本 续航翻倍 处理器性能提升 搭载自研算法 用户数据安全受关注 工程师连夜修复漏洞",
    ),
    "110": (
        "news_military",
        "隐身战机 航母编队 新型导弹 特种部队 驱逐舰 武装直升机 主战坦克 边防官兵",
        "完成实弹演习 首次亮相阅兵 在海上执行巡航任务 雷达性能曝光 火力让对手忌惮 深夜紧急起飞",
    ),
    "112": (
        "news_travel",
        "海边古镇 雪山徒步路线 自驾游 草原民宿 温泉小镇 热门景区 避暑山庄 周末露营地",
        "门票免费开放 游客拍照打卡必去 五月风景最美 旅行攻略一次看懂 人少景美又省钱 住一晚就不想走",
    ),
    "113": (
        "news_world",
        "外国总统 联合国 邻国议会 欧洲多国 驻外大使馆 国际法院 首相 海外侨胞",
        "宣布举行大选 就停火协议表态 遭遇大规模抗议 签署外交声明 对制裁作出回应 召开紧急峰会",
    ),
    "114": (
        "news_stock",
        "A股大盘 龙头股 创业板指数 白酒股 券商板块 涨停个股 新股 主力资金",
        "尾盘跳水 连续三天涨停 股民追高被套 午后震荡反弹 成交量放大 周一开盘走势预测",
    ),
    "115": (
        "news_agriculture",
        "玉米 养猪大户 苹果树 大棚蔬菜 水稻 小麦种子 散养土鸡 果园果农",
        "今年收购价上涨 病虫害防治方法 亩产创新高 施肥要注意时间 秋收季迎来丰收 带动农村农民增收",
    ),
    "116": (
        "news_game",
        "新手玩家 打野英雄 手游战队 端游公测 电竞选手 游戏皮肤 副本首领 国服第一法师",
        "上分技巧大公开 装备这样搭配最强 版本更新后被削弱 五杀操作太秀 排位连胜十局 "
        "隐藏关卡通关攻略",
    ),
}
_OPENERS = (
    "",
    "",
    "网友热议：",
    "今日看点：",
    "快讯丨",
    "深度：",
    "没想到，",
    "终于来了！",
    "2024年",
)
_CLOSERS = (
    "", "", "！", "，你怎么看？", "，真没想到", "，值得收藏", "，原因让人意外", "？看完就明白了",
    "……",
)  # fmt: skip

APPS: dict[str, tuple[str, str]] = {  # code: (description, features)
    "0": (
        "打车",
        "一键呼叫附近的出租车 专车司机快速接单 拼车出行更省车费 行程分享保障乘车安全 "
        "上车前显示预估车费 支持预约接送机",
    ),
    "5": (
        "快递物流",
        "输入运单号查询包裹 快递员上门取件 物流轨迹实时推送 寄件地址一键识别 "
        "驿站取件码自动提醒 支持货运发货和配送",
    ),
    "8": (
        "公共交通",
        "实时公交到站查询 地铁线路图随时看 扫码乘坐公交地铁 换乘方案一目了然 "
        "公交卡在线充值 首末班车时间提醒",
    ),
    "17": (
        "休闲益智",
        "上百个有趣的消除关卡 动动手指挑战拼图 考验你的脑力和反应 和好友比拼通关分数 "
        "可爱的小方块等你消除 轻松玩法老少皆宜",
    ),
    "34": (
        "新闻",
        "热点新闻实时推送 记者带来独家报道 国内国际时事一网打尽 按兴趣订阅头条资讯 "
        "权威媒体深度评论 突发事件第一时间知道",
    ),
    "48": (
        "音乐",
        "海量正版歌曲免费听 无损音质还原现场 歌词同步滚动显示 根据口味推荐歌单 "
        "支持离线下载专辑 收藏喜欢的歌手",
    ),
    "56": (
        "英语",
        "每天背五十个单词 四六级真题在线练习 外教陪你练口语 听力材料逐句精听 "
        "语法知识点详细讲解 英汉词典拍照翻译",
    ),
    "66": (
        "酒店",
        "全国酒店低价预订 入住退房无需押金 会员享受房费折扣 查看房型和早餐 "
        "客房点评真实可靠 到店自助选房办理入住",
    ),
    "83": (
        "问诊挂号",
        "在线预约专家挂号 医生一对一问诊 检查报告手机查看 按科室查找医院 "
        "症状自查给出就诊建议 电子处方送药到家",
    ),
    "88": (
        "菜谱",
        "上万道家常菜做法 图文步骤教你炒菜 按食材搜索菜谱 烘焙甜点一学就会 "
        "煲汤食谱养胃又好喝 厨房新手也能做大餐",
    ),
    "91": (
        "运动健身",
        "跑步轨迹和配速记录 私人教练制定训练计划 瑜伽课程在家练 记录每天消耗的热量 "
        "腹肌马甲线塑形动作 健身打卡赢取奖牌",
    ),
    "98": (
        "记账",
        "三秒记一笔收支 自动生成月度账单 预算超支及时提醒 分类图表看清花销 "
        "多人共享家庭账本 支持导出记账明细",
    ),
}
_APP_NAMES = ("小鹿", "云朵", "松果", "飞鱼", "蓝莓", "星河", "布谷", "青禾", "Panda", "Easy")
_APP_KINDS = ("助手", "通", "宝", "Lite", "大师", "管家", "+")
_INTRODUCTIONS = ("是一款手机软件", "是大家都在用的应用", "为用户提供贴心服务", "专为年轻人打造")
_PRAISE = (
    "界面简洁，操作方便", "完全免费，没有广告", "客服在线解答疑问", "欢迎下载体验",
    "注册即送新人礼包",
    "团队用心打磨每个细节", "让生活更简单", "支持微信登录和分享", "数据云端同步，换机不丢失",
)  # fmt: skip
_UPDATES = ("修复已知bug", "优化用户体验", "全新改版页面", "提升启动速度", "适配新系统")


def tnews(source: Source, size: int) -> list[Row]:
    """`size` titles, every class equally often."""

    def draw(code: str) -> tuple[str, str]:
        _, subjects, predicates = NEWS[code]
        subject, predicate = source.pick(subjects.split()), source.pick(predicates.split())
        title = f"{source.pick(_OPENERS)}{subject}{predicate}{source.pick(_CLOSERS)}{source.odd()}"
        return title, subject

    rows = []
    for code in source.deck(list(NEWS), size):
        title, subject = source.fresh(partial(draw, code), lambda drawn: drawn[0])
        others = source.some(NEWS[code][1].split(), source.random.randrange(4))
        keywords = ",".join(dict.fromkeys([subject, *others])) if source.chance(0.8) else ""
        rows.append(
            {"label": code, "label_desc": NEWS[code][0], "sentence": title, "keywords": keywords}
        )
    return rows


def iflytek(source: Source, size: int) -> list[Row]:
    """`size` app descriptions of 60 to 150 characters, every class equally often."""

    def draw(code: str) -> str:
        name = source.pick(_APP_NAMES) + source.pick(_APP_KINDS)
        features = "，".join(source.some(APPS[code][1].split(), source.random.randint(3, 5)))
        praise = "。".join(source.some(_PRAISE, source.random.randint(1, 3)))
        version = f"V{source.random.randint(1, 9)}.{source.random.randint(0, 9)}"
        update = source.pick(_UPDATES)
        introduction = source.pick(_INTRODUCTIONS)
        text = (
            f"{name}{introduction}，{features}。{praise}。{source.odd()}更新内容{version}{update}"
        )
        return text if len(text) >= 60 else f"{text}。感谢大家一直以来的支持与陪伴。"

    rows = []
    for code in source.deck(list(APPS), size):
        sentence = source.fresh(partial(draw, code), str)
        rows.append({"label": code, "label_des": APPS[code][0], "sentence": sentence})
    return rows
