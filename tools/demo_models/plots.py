"""The sentences of the stories.

In an adventure `{first}` and `{x}` are the first and later mentions of the hero,
`{it}` and `{them}` its pronouns.  In a topic story `{x}` is the topic and
`{hero}` a child who cares about it.  `{helper}` is met by the way and called
`{he}` from then on.
"""

from dataclasses import dataclass

Sentences = tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """A trouble, who turns up and how it ends well; any choice of sentences fits."""

    trouble: Sentences
    meeting: Sentences
    way_out: Sentences


@dataclass(frozen=True)
class TopicPlot:
    """A child, a topic and what came of it; any choice of sentences fits."""

    opening: Sentences
    wish: Sentences
    turn: Sentences
    ending: Sentences


PLACES = (
    ("in a quiet village by the sea", "the village"),
    ("at the edge of a deep forest", "the forest"),
    ("on a green hill above the river", "the hill"),
    ("in a small town with crooked roofs", "the town"),
    ("on an island full of birds", "the island"),
    ("in a valley between two mountains", "the valley"),
    ("near an old stone bridge", "the bridge"),
    ("behind a wall covered with roses", "the wall"),
    ("in the middle of a busy city", "the city"),
    ("beside a lake as clear as glass", "the lake"),
    ("under a very old oak tree", "the oak tree"),
    ("at the end of a long and dusty road", "the road"),
)
HELPERS = (
    ("an old owl", "the owl"),
    ("a kind baker", "the baker"),
    ("a shy hedgehog", "the hedgehog"),
    ("a clever crow", "the crow"),
    ("a friendly postman", "the postman"),
    ("a grey cat", "the cat"),
    ("a wandering musician", "the musician"),
    ("a tired sailor", "the sailor"),
    ("a tiny mouse", "the mouse"),
    ("a patient turtle", "the turtle"),
    ("a curious little girl", "the girl"),
    ("a boy in yellow boots", "the boy"),
)
HEROES = (
    ("Mia", "she", "her"),
    ("Tom", "he", "his"),
    ("Lisa", "she", "her"),
    ("Finn", "he", "his"),
    ("Ruby", "she", "her"),
    ("Erik", "he", "his"),
    ("Nora", "she", "her"),
    ("Toby", "he", "his"),
)

OPENINGS = (
    "Once upon a time, {first} lived {place}.",
    "Long ago, {first} lived {place}.",
    "Far away, {place}, lived {first}.",
    "Not so long ago, {first} lived {place}.",
    "This is the story of {first}. It all happened {place}.",
    "Many years ago, {place}, everybody knew {first}.",
    "There is an old tale about {first}. It begins {place}.",
)
WISHES = (
    "Every morning, {x} watched the sun rise over {there} and hoped for an adventure.",
    "More than anything else, {x} wished for a good friend.",
    "{x} loved the smell of rain and the sound of distant bells.",
    "Some people laughed at {x}, but {it} did not mind at all.",
    "Most days, {x} felt a little bored, because nothing ever happened near {there}.",
    "At night, {x} counted the stars and dreamed of far countries.",
    "Nobody had ever asked {x} for help, and that made {them} a little sad.",
    "{x} had one big secret: deep inside, {it} still feared the dark.",
    "Everybody near {there} liked {x}, for {it} always had a kind word for others.",
    "{x} wanted to do something great, but {it} did not know what it could be.",
)
ENDINGS = (
    "From that day on, {x} and {he} stayed the best of friends.",
    "That night, everybody near {there} danced, and {x} danced the longest of all.",
    "If you ever come to {there}, you may still meet {x} today.",
    "{x} smiled, for even the smallest heart can do great things.",
    "After that, {x} never felt alone again.",
    "To this day, people near {there} tell the story of {x} to their children.",
    "So {x} learned that asking for help is brave, too.",
    "Then {x} fell asleep, tired and happy, and dreamed of the next adventure.",
    "And when {he} said goodbye, {x} promised to come and visit soon.",
)
TOPIC_DOUBTS = (
    '"One day you will see," {she} used to say, but sometimes {she} had doubts, too.',
    "So the weeks went by, and every evening {hero} sat at the window and looked at the clouds.",
    "Only the old clock on the wall seemed to understand {hero}, and it never said a word.",
    "Still, {hero} did not give up, for good things take time.",
    "Even the neighbours shook their heads, but {hero} only smiled and carried on.",
    "{her} best friend, a spotted dog, listened to every word and wagged its tail.",
)

PLOTS = (
    Plot(
        trouble=(
            "One evening, all the lanterns near {there} went out, and nobody could see the way"
            " home.",
            "One dark night, a storm blew out every light near {there}.",
            "One winter day, the sun went down and the moon forgot to rise.",
        ),
        meeting=(
            "{helper} called for help in the dark, and {x} answered at once.",
            "In the dark, {x} met {helper}, who was shaking with fear.",
            "Then {x} heard somebody cry. It was {helper}, lost and cold.",
        ),
        way_out=(
            "{x} sang so loudly that everybody could follow the song and find the way home.",
            "Together they lit a great fire, and {x} kept it burning until the morning.",
            "With the help of {he}, {x} found an old lamp and carried it from door to door.",
        ),
    ),
    Plot(
        trouble=(
            "One summer, the river ran dry, and the flowers near {there} began to fade.",
            "One hot day, there was no water left in the well, and everybody was thirsty.",
            "It had not rained for a hundred days, and the fields had turned brown.",
        ),
        meeting=(
            "{helper} told {x} about a hidden spring high up in the mountains.",
            "On the way to the mountains, {x} met {helper}, who knew where clouds are made.",
            "{x} asked {helper} for advice, and they set out to look for water.",
        ),
        way_out=(
            "After three days, {x} moved one heavy stone, and cold, clear water came running out.",
            "There {x} told the clouds a sad story, and they cried until everything was green"
            " again.",
            "Step by step, {x} and {he} dug a long ditch, and the water followed them home.",
        ),
    ),
    Plot(
        trouble=(
            "One rainy morning, a little duckling was sitting on the steps, all alone.",
            "One day, a small duckling came by and asked for its mother.",
            "One night, a strange noise came from the garden. It was a lost duckling.",
        ),
        meeting=(
            "{x} asked {helper} for the way, and they went to search for the mother together.",
            "{helper} had seen a mother duck at the pond, but the path was long and muddy.",
            "{helper} thought it was too late to search, but {x} did not give up.",
        ),
        way_out=(
            "By noon, {x} heard a loud quack behind the reeds, and the duckling ran to its mother.",
            "At last, {x} called as loudly as possible, and the mother duck came flying.",
            "With a trail of bread crumbs, {x} and {he} led the whole duck family together again.",
        ),
    ),
    Plot(
        trouble=(
            "One morning, the great bell of {there} was gone, and nobody knew what time it was.",
            "One day, a thief took the golden bell that used to ring every evening.",
            "Then the old bell fell silent, and everybody missed its sound.",
        ),
        meeting=(
            "{helper} had seen deep footprints in the sand, and {x} followed them.",
            "Only {helper} believed that {x} could find out what had happened.",
            "{x} asked everybody, and {helper} knew of a cave where things disappear.",
        ),
        way_out=(
            "In a cave, {x} found a lonely giant, who only wanted some music. They shared the bell"
            " from then on.",
            "{x} found the bell under a heap of leaves, and {he} helped to carry it back.",
            "Behind a waterfall, {x} heard a soft ringing, and soon the bell hung in its place"
            " again.",
        ),
    ),
    Plot(
        trouble=(
            "One winter, the snow lay so high that no one could leave the house.",
            "One cold day, deep snow covered every path to {there}.",
            "In the longest winter of all, the food ran out and the roads were closed.",
        ),
        meeting=(
            "Under the snow, {x} found {helper}, cold but alive.",
            "{helper} had an old sledge, and {x} had a plan.",
            "{x} looked out and saw {helper} waving from a roof.",
        ),
        way_out=(
            "All day long, {x} pushed the snow aside, until there was a path to every door.",
            "Together they brought warm soup to everybody, and {x} told jokes along the way.",
            "{x} and {he} built a slide of ice, and soon everybody came out to play.",
        ),
    ),
    Plot(
        trouble=(
            "One night, a star fell from the sky and landed right beside {there}.",
            "One evening, a tiny star got caught in the branches of a tree.",
            "One clear night, a falling star called for help.",
        ),
        meeting=(
            "{x} wanted to bring the star home, but the sky was far away. Then {helper} came by.",
            "{helper} was afraid of the bright light, but {x} went closer.",
            '"It has to go back before the morning," said {helper}, and {x} agreed.',
        ),
        way_out=(
            "They climbed the highest tower, and {x} threw the star up with all might.",
            "{x} asked the wind for help, and the wind carried the star back into the night.",
            "With a long rope and a lot of patience, {x} and {he} put the star back in its place.",
        ),
    ),
    Plot(
        trouble=(
            "One day, the king of the land stopped laughing, and everybody grew sad with him.",
            "One spring, the queen lost her smile, and all the music in the land stopped.",
            "One Monday, everybody woke up in a bad mood, and no one knew why.",
        ),
        meeting=(
            '{helper} had tried everything. "Now it is your turn," people said to {x}.',
            "{x} and {helper} thought about it for a long time over a cup of tea.",
            '"A good joke could help," said {helper}, and {x} had an idea.',
        ),
        way_out=(
            "{x} danced on one leg with a soup bowl as a hat, and soon everybody was laughing.",
            "{x} told the truth: nobody has to be happy all the time. That helped at once.",
            "{x} and {he} gave a party with cake and music, and the first laugh filled the air.",
        ),
    ),
    Plot(
        trouble=(
            "One day, a letter arrived. It held a map and only two words: Come quickly!",
            "One morning, there was an old map under a stone.",
            "One afternoon, the wind brought a yellow piece of paper. It was a treasure map.",
        ),
        meeting=(
            "{x} could not read the map alone, but {helper} knew every sign on it.",
            "{helper} wanted to come along, and so {x} did not have to travel alone.",
            "On the way, {x} met {helper}, who was looking for the same place.",
        ),
        way_out=(
            "In the end, {x} found no gold but a garden full of apples, enough for everybody.",
            "They dug all night, and {x} found a chest full of old songs. They sang every one.",
            "The map led {x} and {he} around in a circle, and the treasure was a new friendship.",
        ),
    ),
    Plot(
        trouble=(
            "One stormy day, the old bridge broke, and friends could no longer visit each other.",
            "After a flood, there was deep water between {there} and the market.",
            "One autumn day, the wind took away the only boat.",
        ),
        meeting=(
            "On the other side, {x} saw {helper}, who could not get home.",
            "{x} asked {helper} what to do, and they made a plan.",
            "{helper} had wood and nails, but nobody to help until {x} came along.",
        ),
        way_out=(
            "For seven days {x} carried stones, one by one, until a new bridge stood there.",
            "{x} tied ten barrels together, and {he} was the first to cross the water.",
            "They built a strong raft, and {x} took everybody safely across.",
        ),
    ),
    Plot(
        trouble=(
            "One day, a big green monster came and ate all the cakes in the bakery.",
            "One night, a giant snored so loudly that nobody near {there} could sleep.",
            "One morning, a grumpy giant sat down on the road and would not move.",
        ),
        meeting=(
            "Everybody ran away, but {x} stayed. So did {helper}.",
            "{helper} wanted to call the soldiers, but {x} had a better idea.",
            "{x} took a deep breath, and {helper} wished {them} good luck.",
        ),
        way_out=(
            "{x} simply asked what was wrong. It was a sore tooth, and soon it was out.",
            "{x} offered a pillow and a lullaby, and from then on there was peace.",
            "{x} and {he} invited the guest to dinner, and it turned out to be very polite.",
        ),
    ),
)

THEME_PLOTS = (
    TopicPlot(
        opening=(
            "Once upon a time, {hero} lived {place}. More than anything else, {she} loved {x}.",
            "Long ago, there was a child called {hero}, who lived {place} and talked about {x} all"
            " day.",
            "{hero} lived {place}, and {her} head was always full of {x}.",
        ),
        wish=(
            "People laughed and said that {x} would never lead to anything.",
            "But nobody else near {there} cared about {x}, and so {hero} felt alone.",
            "Every night, {she} read the same old book about {x}.",
        ),
        turn=(
            "One day, {helper} came to {there} and asked for somebody who knew about {x}. {hero}"
            " ran out at once.",
            "Then {hero} met {helper}, who had travelled far to learn about {x}.",
            'One rainy day, {helper} knocked at the door. "Please tell me about {x}," said {he}.',
        ),
        ending=(
            "They talked until the moon went down, and {hero} knew that {she} had found a friend.",
            "Soon people came from everywhere to hear {hero} speak about {x}.",
            "Later, {hero} wrote a book about {x}, and {he} drew the pictures.",
        ),
    ),
    TopicPlot(
        opening=(
            "There once was a child called {hero} {place}, who had never heard of {x}.",
            "{hero} lived {place}, where nobody was allowed to speak about {x}.",
            "Many years ago, {place}, {hero} heard a whisper in the wind. It spoke of {x}.",
        ),
        wish=(
            '"What is so special about {x}?" {she} asked everybody, but there was no answer.',
            "One morning, {hero} packed a small bag and set out to learn all about {x}.",
            "{she} could think of nothing else, not even at dinner.",
        ),
        turn=(
            'Far from {there}, {hero} met {helper}. "You must look closely," said {he}, "and you'
            ' will find {x} everywhere."',
            "On the third day, {helper} showed {hero} a secret door, and behind it everything was"
            " about {x}.",
            "{helper} laughed kindly and told {hero} a long story about {x}.",
        ),
        ending=(
            "{hero} came home with shining eyes, and now everybody near {there} loves {x}.",
            "Since then, {hero} has known that the best answers come to those who ask.",
            "That evening, {hero} fell asleep with a smile and dreamed of {x}.",
        ),
    ),
    TopicPlot(
        opening=(
            "Every year there was a big festival {place}, and this time it was all about {x}.",
            "One spring, {hero} decided to put on a play about {x}. The stage stood {place}.",
            "Long ago, {place}, the children had to paint a picture of {x}.",
        ),
        wish=(
            "{hero} wanted to show everybody how wonderful {x} can be.",
            "But {hero} was nervous, because {she} knew so little about {x}.",
            "{hero} worked day and night and hardly slept at all.",
        ),
        turn=(
            "Then a storm blew everything away. {helper} helped {hero} to start again, and this"
            " time it was even better.",
            'At the last moment, {hero} lost heart, but {helper} whispered: "Just think of {x}."',
            "Luckily, {helper} knew a lot about {x} and gave {hero} good advice.",
        ),
        ending=(
            "The people clapped for an hour, and {hero} bowed proudly. Nobody ever forgot {x}"
            " again.",
            "In the end, {hero} won the first prize and shared it with {he}.",
            "It was the best day of {her} life, and it had all begun with {x}.",
        ),
    ),
)
