"""The words of pairing codes: 512 English words, mostly nouns, nine bits each.

They are read out over a telephone and typed by the listener.  So each has 4 to 8 letters, and no two begin with the
same four, since the beginning of a word stands for it.  Any two differ by an edit distance of at least three letters in
spelling, and of roughly two in sound.  A test verifies this.  The order of the list has no meaning: codes contain the
words themselves, not their numbers.
"""

from __future__ import annotations

from typing import Final

__all__ = ["WORDS"]

_TEXT: Final = """
abacus acorn acrobat airport album alfalfa algebra almond alpine amber anchor anvil apple apricot apron aquarium
arcade arctic armchair artist aspen asphalt asteroid atlas aurora autumn avocado badger bakery balcony ballad banana
banjo barley basil basket bathtub beacon beagle beaver bedrock beehive bench bicycle biscuit bison blimp blizzard
blossom bobcat bobsled bonfire boulder bracelet breeze bridge broccoli bubble buffalo bulldog burrito butter cabbage
cabin cactus camel campfire candle captain caravan cardinal cargo carpet catfish cedar cement chalk chariot cheetah
cherry chess chicken chimney cinema circus cliff clock clover cobalt cobra cobweb coconut coffee compass concert
confetti cookie copper cosmos cottage cowboy coyote crater crayon crimson crystal cucumber cupboard cupcake cushion
cyclone daffodil daisy dancer daylight delta denim desert diamond dinosaur dolphin domino donkey doorway drizzle
drummer dumpling dungeon dynamo echo eclipse elbow elephant elevator emerald engine equator espresso evening fabric
farmer feather fender festival fiddle fiesta filter fireside fishbowl flagpole flamingo flask flight flour flute
focus foliage football forest fossil fountain freckle frigate furnace galaxy gallery garden garlic gazelle ghost
giant ginger giraffe glacier glider globe goblet gorilla grammar granite grape grotto guitar gumdrop habitat hacksaw
hamster handbag harbor harp harvest hatchet headline hedgehog helmet hickory highway hollow hologram horizon hornet
hotel husky hydrant iceberg igloo iguana impulse indigo inkwell insect island ivory jackal jaguar jasmine javelin
jersey jewel jigsaw journal jubilee juggler juice jukebox juniper jury kangaroo karate kayak kennel ketchup kettle
keyboard keyhole kimono kitchen kiwi koala lantern lasso laundry lavender legend lemon leopard lettuce library
lighter lilac linen liquid llama lobster locket lollipop lullaby lunar macaroni machine magenta magnet mailbox
mammoth mandarin manor marble mascot meadow melody mercury meteor midnight mineral mirror mitten mocha moose muffin
mulberry mural museum mushroom mustard mystery nature navy nebula nectar needle nephew nickel nightcap notebook
nucleus nugget nutmeg nylon oatmeal ocean octagon octopus office olympic onion opal opera orange orbit orchard
ostrich outfit oxygen pacific painter pajamas palace pancake paprika parcel parrot peacock peanut pelican pencil
pendant penguin peony petal phantom pickle picnic pigeon pilgrim pilot pinecone pioneer pizza platinum plumber
plywood poem polar poncho popcorn poppy portrait potato pottery pretzel prism profile pulley pumpkin puppet puzzle
pyramid python quail quartz rabbit radish raft rainbow raisin raven rebound recipe redwood reef rescue rhino ribbon
riverbed rodeo rosemary rowboat rubber ruffle rugby safari sailor salsa sandal sapphire sardine savanna sawdust
sawmill scallop scarf school scooter scorpion seafood seagull sesame shampoo shelter shoelace shrimp shuttle sketch
skillet skyline slipper sloth smoke snorkel snowball soccer sofa sonata spaniel spatula speaker spinach spiral
sponge sprocket spruce squash squirrel stadium stallion stapler starfish statue steam stirrup stork studio subway
suitcase summit sunbeam surfer swan swimmer tadpole tandem tapestry tarragon teacup teapot teddy temple tennis
terrace thimble throne thunder toboggan torch tornado tortoise tower tractor treasure trellis tribune tripod trolley
trombone trophy trumpet tugboat tulip tundra turbine turkey tuxedo tweed umbrella unicorn universe vanilla varnish
vault vessel viking village vinegar violet visitor vitamin volcano vortex voyage vulture wagon walnut waltz wardrobe
warrior watch wedding weekend wheat whisper wildcat window wizard wolf wombat woodland yacht yogurt zenith zigzag
zodiac zucchini
"""
WORDS: Final = tuple(_TEXT.split())
"""The words, in alphabetical order."""
