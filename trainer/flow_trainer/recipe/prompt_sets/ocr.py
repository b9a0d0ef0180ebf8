"""Prompts for text rendering: a scene, and a text in double quotes that the image should show.

Scenes and texts are put together from word lists. Every text holds a noun, and the nouns of `test`
are none of `train`'s: whatever the seeds, no text of one file is in the other.
"""

from __future__ import annotations

import random
from typing import Literal

from flow_trainer.errors import ConfigError

Split = Literal["train", "test"]
COUNTS: dict[Split, int] = {"train": 20_000, "test": 1_000}
"""As many as the paper's own set has (section 4.1)."""
_TEST_EVERY = 6  # one noun in six
_PATIENCE = 2000  # draws in a row that give nothing new before there is nothing new


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(";")]


NOUNS = _words("""
    amber anchor apple arrow aspen autumn badger bakery balloon bamboo barley beacon bicycle birch
    blossom bramble breeze bridge bronze button cabin cactus camera candle canyon carbon cascade
    castle cedar cello cherry chimney cinder circus citrus clover cobalt coffee comet compass
    copper coral cotton cottage crystal cypress daisy desert diamond dolphin dragon eagle echo
    ember engine falcon feather fern fiddle firefly forest fountain galaxy garden garnet ginger
    glacier granite guitar hammer harbor harvest hazel hearth heron hollow honey horizon island
    ivory jasmine jungle juniper kettle lagoon lantern lavender lemon library lighthouse lily
    linen lotus magnet mango maple marble market marina meadow melody mercury midnight mirror
    monsoon moonlight mosaic mountain museum nectar nutmeg ocean olive opal orchard orchid otter
    owl paprika parrot peach pebble penguin pepper phoenix piano pigeon planet plaza pocket poppy
    prairie pumpkin puzzle quartz rabbit radio railway rainbow raven ribbon river robin rocket
    saddle saffron sailor salmon sapphire satin savanna seaside shadow silver sparrow spruce
    station studio summit sunrise sunset swallow tango teapot temple theater thistle thunder tiger
    timber topaz tower tulip tunnel turtle valley velvet violet violin volcano voyage walnut
    waterfall whistle willow window winter workshop zephyr
""")
ADJECTIVES = _words("""
    ancient bold brave bright broken calm clever cozy crimson curious daring distant electric
    endless fearless first flying free frozen gentle giant golden grand happy hidden humble
    humming last little lively lost lucky magic mighty mellow modern new noble old painted patient
    perfect proud purple quick quiet rolling royal rustic salty secret shining silent simple
    sleepy slow smiling smoky spicy steady sunny swift tall tiny true twin vivid wandering warm
    wild winding wise wonderful young
""")
_TEXTS = (
    "{noun}",
    "{adjective} {noun}",
    "{adjective} {noun}",
    "The {adjective} {noun}",
    "{noun} & {other}",
    "{noun} and {other}",
    "{noun} Street {number}",
    "{noun} Club Est. {year}",
    "{noun} Festival {year}",
    "Welcome to {noun} {other}",
    "Fresh {noun} Every Day",
    "Open Late: {noun} Bar",
    "Do Not Feed the {noun}",
    "Save the {adjective} {noun}",
    "Caution: {adjective} {noun}",
    "Chapter {number}: The {noun}",
    "{number} Miles to {noun}",
    "Keep {noun} {adjective}",
)
_CARRIERS = _phrases("""
    a weathered wooden sign; a glowing neon sign; a chalkboard menu; a hardcover book; a paper coffee cup;
    a birthday cake with icing letters; a brick wall with fresh graffiti; a vintage travel poster;
    a cotton T-shirt; a street banner; a bottle label; a train station display; a brass door plate;
    a newspaper front page; an embroidered patch; a movie theater marquee; a delivery van;
    a road sign; a glass shop window; a stone archway; a surfboard; a racing car; a robot's chest plate;
    a hot air balloon; a wax-sealed letter; a museum plaque; a lighthouse wall; a space station hatch;
    a food truck; a school blackboard; a knitted scarf; a wooden crate; a concert ticket; a sandwich board;
    a fishing boat's hull; a parchment scroll; a laptop screen; a digital billboard; a jam jar
""")
_SAYING = (
    'that reads "{text}"',
    'that says "{text}"',
    'with the words "{text}"',
    'with "{text}" in bold letters',
    'with "{text}" written across it',
    'showing the text "{text}"',
    'lettered "{text}"',
    'bearing the inscription "{text}"',
)
_SETTINGS = _phrases("""
    on a rainy street at night; in a sunlit bakery; beside a mountain trail; in a crowded market;
    at the edge of a wheat field; in a quiet library; on a snowy village square; under a stormy sky;
    in a futuristic city; on a wooden desk; at a seaside harbor; in a misty forest; near an old railway;
    in a cluttered workshop; at a summer festival; in a desert at dusk; on a rooftop garden;
    inside a subway station; next to a red bicycle; in front of a small cafe; beneath cherry blossoms;
    among autumn leaves; in a child's bedroom; on the deck of a ship; by a frozen lake;
    in an abandoned factory; on a kitchen shelf; at a science fair; in a medieval town; on the moon
""")
_STYLES = _phrases("""
    photorealistic; soft morning light; golden hour; watercolor painting; shallow depth of field;
    cinematic lighting; flat vector illustration; 35mm film photograph; detailed digital art;
    pixel art; wide angle view; close-up shot; oil painting; high contrast; pastel colors; isometric view;
    long exposure; comic book style
""")
_SCENES = (
    "{carrier} {saying}, {setting}",
    "{carrier} {saying}, {setting}, {style}",
    "{setting} stands {carrier} {saying}",
    "{style}: {carrier} {saying}, {setting}",
    "a photo of {carrier} {saying}, {setting}",
    "{setting}, {carrier} {saying}, {style}",
)
_CASES = (str, str, str.upper, str.lower)


def prompts(split: Split, count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` lines `{"prompt": ...}`, the texts in them all different, also to a reader that sees
    neither case nor blanks. Equal seeds give equal lines.

    Raises ConfigError when the word lists cannot give as many.
    """
    if count < 1:
        raise ConfigError(f"a set of {count} prompts: ask for 1 or more")
    rng = random.Random(f"ocr/{split}/{seed}")
    nouns = nouns_of(split)
    rows: dict[str, dict[str, str]] = {}
    repeated = 0
    while len(rows) < count:
        text = _text(rng, nouns)
        key = text.replace(" ", "").lower()
        repeated = repeated + 1 if key in rows else 0
        if repeated > _PATIENCE:
            raise ConfigError(
                f"the word lists give about {len(rows)} texts for {split}: ask for fewer"
            )
        if key not in rows:
            rows[key] = {"prompt": _scene(rng, text)}
    return list(rows.values())


def nouns_of(split: Split) -> list[str]:
    """The nouns that only this split may use."""
    return [
        noun for index, noun in enumerate(NOUNS) if (index % _TEST_EVERY == 0) == (split == "test")
    ]


def _text(rng: random.Random, nouns: list[str]) -> str:
    noun, other = (word.title() for word in rng.sample(nouns, 2))
    text = rng.choice(_TEXTS).format(
        noun=noun,
        other=other,
        adjective=rng.choice(ADJECTIVES).title(),
        number=rng.randint(2, 99),
        year=rng.randint(1890, 2030),
    )
    return rng.choice(_CASES)(text)


def _scene(rng: random.Random, text: str) -> str:
    scene = rng.choice(_SCENES).format(
        carrier=rng.choice(_CARRIERS),
        saying=rng.choice(_SAYING).format(text=text),
        setting=rng.choice(_SETTINGS),
        style=rng.choice(_STYLES),
    )
    return scene[0].upper() + scene[1:]
