"""The words, and which of them training, selection and the reported result may see."""

from __future__ import annotations

import random

_WORDS = """
    able acid aged also area army away baby back ball band bank base bath bear beat been beer
    bell belt best bike bird blow blue boat body bone book boot born both bowl bulk burn bush
    busy cake call calm came camp card care case cash cast cell chat chip city club coal coat
    code cold come cook cool cope copy core cost crew crop dark data date dawn days deal dean
    dear debt deep deer desk dial diet disc disk does done door down draw drew drop drum dual
    duck duke dust duty each earn ease east easy edge else even ever exam exit face fact fair
    fall farm fast fear feed feel feet fell felt file fill film find fine fire firm fish five
    flag flat flow folk food foot ford form fort four free from fuel full fund gain game gate
    gave gear gift girl give glad goal goat gold golf gone good gray grew grid grow gulf hair
    half hall hand hang hard harm hawk head hear heat held help herb here hero hide high hill
    hire hold hole holy home hope host hour huge hunt hurt idea inch into iron item jack jazz
    join jump jury just keen keep kept kick kind king kite knee knew know lack lady lake lamp
    land lane last late lead leaf left lend lens less life lift like line link lion list live
    load loan lock logo long look lord lose loss lost love luck made mail main make male mall
    many mark mask mass math maze meal mean meat meet menu mile milk mill mind mine mint miss
    mode mood moon more most move much must myth name navy near neck need nest news next nice
    nine node none noon nose note oath obey odds okay once only onto open oral oven over pace
    pack page paid pain pair palm park part pass past path peak pear pick pine pink pipe plan
    play plot plug plum plus poem poet pole poll pool poor port post pull pump pure push quiz
    race rail rain rank rare rate read real rear rely rent rest rice rich ride ring rise risk
    road rock role roll roof room root rope rose rule rush safe said sail salt same sand save
    seal seat seed seek seem seen self sell send sent ship shop shot show side sign silk sing
    sink site size skin slip slow snow soap soft soil sold sole some song soon sort soul soup
    spin spot star stay stem step stop such suit sure swim tail take tale talk tall tank tape
    task team tech tell tend tent term test text than that them then they thin this thus tide
    tile time tiny told toll tone tool tour town toys tree trip true tube tune turn twin type
    unit upon used user vary vast very view vote wage wait wake walk wall want warm wash wave
    ways weak wear week well went were west what when whom wide wife wild will wind wine wing
    wire wise wish with wolf wood wool word wore work yard yarn year yoga your zero zone zoom
"""

PROMPT = 'a sign that says "{word}"'


def splits() -> tuple[list[str], list[str], list[str]]:
    """(train, validation, held-out) words, upper case, disjoint: 426, 32 and 64 of them."""
    words = sorted({word for word in _WORDS.upper().split() if len(word) == 4})
    random.Random(7).shuffle(words)
    return words[96:], words[64:96], words[:64]
