"""The tools that the generated conversations offer: schemas, ways to ask, results and replies."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ops.nano.data.conversation import Tool
from ops.nano.data.tool_values import SAMPLERS, Values, calculate, entries_of, fields_of


def function_schema(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _property(kind: str) -> dict[str, Any]:
    if "|" in kind:
        return {"type": "string", "enum": kind.split("|")}
    if kind == "strings":
        return {"type": "array", "items": {"type": "string"}}
    return {"type": kind}


@dataclass(frozen=True)
class CatalogueTool:
    """One tool. Templates are filled with the arguments, `says` and `reply` also with the fields of the result."""

    signature: str  # "name(parameter: type, ...)"; "?" marks an optional one; "a|b" is an enum, "strings" an array
    description: str
    wants: str  # what the user wants, for the reasoning
    asks: str  # requests with bars between them; the parameters that one names are the arguments of its call
    says: str  # the result as text; its fields that are no parameters are drawn
    reply: str  # the assistant's answer
    pair: str = ""  # requests for two values of the only parameter, {0} and {1}

    @cached_property
    def name(self) -> str:
        return self.signature.partition("(")[0]

    @cached_property
    def schema(self) -> Tool:
        """In the form of the OpenAI API."""
        declared = [part.split(": ") for part in self.signature.rstrip(")").partition("(")[2].split(", ")]
        properties = {name.rstrip("?"): _property(kind) for name, kind in declared}
        required = [name for name, _ in declared if not name.endswith("?")]
        return function_schema(self.name, self.description, properties, required)

    @cached_property
    def parameters(self) -> list[str]:
        return list(self.schema["function"]["parameters"]["properties"])

    @cached_property
    def requests(self) -> list[str]:
        return entries_of(self.asks)

    @cached_property
    def pair_requests(self) -> list[str]:
        return entries_of(self.pair) if self.pair else []

    def sample_argument(self, parameter: str, rng: random.Random) -> Any:
        return (SAMPLERS.get(f"{self.name}.{parameter}") or SAMPLERS[parameter])(rng)

    def sample_result(self, arguments: Values, rng: random.Random) -> Values:
        """The fields of a result for a call."""
        if self.name == "calculate":
            return {"result": calculate(arguments["expression"])}
        if self.name == "convert_currency":
            return {"converted": round(float(arguments["amount"]) * rng.uniform(0.2, 5), 2)}
        return {name: SAMPLERS[name](rng) for name in fields_of(self.says) if name not in self.parameters}


CATALOGUE: tuple[CatalogueTool, ...] = (
    CatalogueTool(
        "get_weather(city: string, unit?: celsius|fahrenheit)",
        "Current weather in a city",
        "the weather in {city}",
        """What is the weather in {city}?|How is the weather in {city} in {unit}?|Tell me the weather in {city}.
Give me the weather in {city} in {unit}.|Is it warm in {city} now?|Weather in {city}?""",
        "{temperature} degrees, {sky}",
        "It is {temperature} degrees and {sky} in {city}.",
        pair="""What is the weather in {0} and {1}?|Compare the weather in {0} and {1}.|Weather for {0} and {1}?""",
    ),
    CatalogueTool(
        "get_time(city: string)",
        "Local time in a city",
        "the time in {city}",
        """What time is it in {city}?|Tell me the time in {city}.|Current time in {city}?
What is the local time in {city}?|I need the time in {city}.""",
        "{time}",
        "It is {time} in {city}.",
        pair="What time is it in {0} and in {1}?|Tell me the time in {0} and {1}.|Time in {0} and {1}?",
    ),
    CatalogueTool(
        "convert_currency(amount: number, from_currency: string, to_currency: string)",
        "Convert money between currencies",
        "to convert {amount} {from_currency}",
        """Convert {amount} {from_currency} to {to_currency}.|How much is {amount} {from_currency} in {to_currency}?
What are {amount} {from_currency} worth in {to_currency}?|I want to change {amount} {from_currency} into {to_currency}.
How many {to_currency} do I get for {amount} {from_currency}?""",
        "{converted}",
        "{amount} {from_currency} is {converted} {to_currency}.",
    ),
    CatalogueTool(
        "set_timer(minutes: integer)",
        "Start a countdown timer",
        "a timer of {minutes} minutes",
        """Set a timer for {minutes} minutes.|Start a {minutes} minute timer.|Timer: {minutes} minutes.
Count down {minutes} minutes.|Tell me when {minutes} minutes are over.""",
        "timer {code} started",
        "Timer {code} runs for {minutes} minutes.",
    ),
    CatalogueTool(
        "add_event(title: string, date: string, time: string)",
        "Add an event to the calendar",
        "to add an event on {date}",
        """Add an event '{title}' on {date} at {time}.|Put '{title}' in my calendar on {date} at {time}.
Schedule '{title}' for {date} at {time}.|On {date} at {time} I have '{title}'. Add it to my calendar.
Calendar: {title}, {date}, {time}.""",
        "event {code} saved",
        "I added '{title}' on {date} at {time} as {code}.",
    ),
    CatalogueTool(
        "search_flights(origin: string, destination: string, date: string)",
        "Search flights between cities",
        "flights from {origin} to {destination}",
        """Find flights from {origin} to {destination} on {date}.
I want to fly from {origin} to {destination} on {date}.
Which flights go from {origin} to {destination} on {date}?|Flights to {destination} from {origin} on {date}?
On {date} I fly from {origin} to {destination}. Find a flight.""",
        "flight {code} at {time}, {price} USD",
        "Flight {code} leaves at {time} and costs {price} USD.",
    ),
    CatalogueTool(
        "play_song(title: string, artist: string)",
        "Play a song",
        "to hear {title}",
        """Play {title} by {artist}.|Put on {title} by {artist}.|I want to hear {title} by {artist}.
Play the song {title} by {artist}.|Start '{title}' by '{artist}'.""",
        "playing, {minutes} minutes",
        "Playing {title} by {artist}, {minutes} minutes.",
    ),
    CatalogueTool(
        "turn_on_light(room: string, brightness: integer)",
        "Turn on a light",
        "light in the {room}",
        """Turn on the light in the {room} at {brightness} percent.|Set the {room} light to {brightness}.
Light in the {room}, brightness {brightness}.|Switch on the {room} light with brightness {brightness}.
I need {brightness} percent light in the {room}.""",
        "lamp {code} is on",
        "Lamp {code} in the {room} is on at {brightness} percent.",
    ),
    CatalogueTool(
        "send_message(recipient: string, text: string)",
        "Send a text message",
        "to send a message to {recipient}",
        """Send a message to {recipient}: {text}|Tell {recipient} '{text}'.|Text {recipient} '{text}'.
Write to {recipient}: {text}|Message {recipient} that {text}.|Send '{text}' to {recipient}.""",
        "sent at {time}",
        "I sent '{text}' to {recipient} at {time}.",
    ),
    CatalogueTool(
        "get_stock_price(symbol: string)",
        "Latest price of a stock",
        "the stock price of {symbol}",
        """What is the stock price of {symbol}?|How much is {symbol} stock?|Price of {symbol} shares?
Look up the stock {symbol}.|Where does {symbol} trade now?|Get me the {symbol} stock price.""",
        "{price} USD",
        "{symbol} is at {price} USD.",
        pair="What are the stock prices of {0} and {1}?|Compare the stocks {0} and {1}.|{0} and {1} stock?",
    ),
    CatalogueTool(
        "book_table(restaurant: string, people: integer, outdoor?: boolean)",
        "Book a restaurant table",
        "a table at {restaurant}",
        """Book a table at {restaurant} for {people} people.|Book a table {outdoor} at {restaurant} for {people} people.
Reserve a table for {people} at {restaurant}.|We are {people} and want to sit {outdoor} at {restaurant}. Book a table.
I need a table for {people} people at {restaurant}, {outdoor}.""",
        "table {number} at {time}",
        "Table {number} at {restaurant} is booked for {people} people at {time}.",
    ),
    CatalogueTool(
        "translate(text: string, language: string)",
        "Translate a text",
        "a translation into {language}",
        """Translate '{text}' into {language}.|How do I say '{text}' in {language}?|Translate to {language}: {text}
What is '{text}' in {language}?|Put '{text}' into {language}.""",
        "{translation}",
        "In {language} it is '{translation}'.",
    ),
    CatalogueTool(
        "list_files(folder: string)",
        "List files in a folder",
        "the files in {folder}",
        """List the files in {folder}.|Which files are in {folder}?|Show me what is in the folder {folder}.
What does the folder {folder} contain?|Files in {folder}?""",
        "{files}",
        "The folder {folder} has {files}.",
        pair="List the files in {0} and {1}.|Which files are in {0} and in {1}?|Show the folders {0} and {1}.",
    ),
    CatalogueTool(
        "read_file(path: string)",
        "Read a file",
        "to read {path}",
        """Read the file {path}.|Show me {path}.|What is in the file {path}?|Open {path} and tell me what it says.
What does {path} say?|Print {path}.""",
        "{line}",
        "The file {path} says: {line}.",
        pair="Read the files {0} and {1}.|Show me {0} and {1}.|What do {0} and {1} say?",
    ),
    CatalogueTool(
        "delete_file(path: string, force?: boolean)",
        "Delete a file",
        "to delete {path}",
        """Delete {path}.|Delete the file {path} {force}.|Remove {path}.|Please remove {path} {force}.
Get rid of the file {path}.|Erase {path} {force}.""",
        "freed {total} KB",
        "I deleted {path} and freed {total} KB.",
    ),
    CatalogueTool(
        "calculate(expression: string)",
        "Evaluate an arithmetic expression",
        "the value of {expression}",
        """Calculate {expression}.|What is {expression}?|Compute {expression}.|How much is {expression}?
Work out {expression}.|Evaluate {expression}.""",
        "{result}",
        "{expression} = {result}",
        pair="Calculate {0} and {1}.|What are {0} and {1}?|Compute {0} and also {1}.",
    ),
    CatalogueTool(
        "define_word(word: string)",
        "Look up a word",
        "the meaning of {word}",
        """What does {word} mean?|Define {word}.|Define the word '{word}'.|What is the meaning of {word}?
Look up the word {word}.|Give me a definition of {word}.""",
        "{definition}",
        "The word {word} means {definition}.",
        pair="Define {0} and {1}.|What do {0} and {1} mean?|Look up the words {0} and {1}.",
    ),
    CatalogueTool(
        "create_note(title: string, tags: strings)",
        "Create a note with tags",
        "a note {title}",
        """Create a note '{title}' with tags {tags}.|Make a note '{title}' tagged {tags}.
New note: {title}, tags {tags}.
Write a note called '{title}' with the tags {tags}.|Note '{title}' under {tags}.""",
        "note {code}",
        "I created note {code} with tags {tags}.",
    ),
    CatalogueTool(
        "get_route(start: string, end: string, mode?: walk|drive|bike)",
        "Route between two places",
        "a route from {start} to {end}",
        """How do I get from {start} to {end}?|Show me the route from {start} to {end}.|Route from {start} to {end}?
I want to {mode} from {start} to {end}. Show me the way.|Can I {mode} from {start} to {end}?
Find the way to {end} from {start}.""",
        "{distance} km, {minutes} minutes",
        "From {start} to {end} it is {distance} km and takes {minutes} minutes.",
    ),
    CatalogueTool(
        "set_alarm(time: string, repeat?: boolean)",
        "Set an alarm clock",
        "an alarm at {time}",
        """Set an alarm for {time}.|Wake me at {time}.|Set an alarm for {time} {repeat}.|Wake me up {repeat} at {time}.
Alarm at {time}.|I must get up at {time} {repeat}. Set an alarm.""",
        "alarm {code}",
        "Alarm {code} is set for {time}.",
    ),
    CatalogueTool(
        "find_restaurant(cuisine: string, city: string)",
        "Find a restaurant",
        "{cuisine} food in {city}",
        """Find a {cuisine} restaurant in {city}.|Where can I eat {cuisine} food in {city}?|{cuisine} food in {city}?
I am in {city} and want {cuisine} food.|Is there a good {cuisine} restaurant in {city}?""",
        "{restaurant}, open until {time}",
        "Try {restaurant}, open until {time}.",
    ),
    CatalogueTool(
        "get_news(topic: string, count: integer)",
        "Latest news on a topic",
        "news about {topic}",
        """Give me {count} news items about {topic}.|Show {count} headlines about {topic}.|{count} news on {topic}.
What is new in {topic}? Give me {count} items.|I want {count} stories about {topic}.""",
        "{headline}",
        "News about {topic}: {headline}.",
    ),
    CatalogueTool(
        "add_to_list(item: string, quantity: integer)",
        "Add to the shopping list",
        "{item} on the shopping list",
        """Add {quantity} {item} to the shopping list.|Put {quantity} {item} on my list.
We need {quantity} {item}. Add them.
Shopping list: {quantity} {item}.|Add {item} to my shopping list, {quantity} of them.""",
        "{total} items on the list",
        "I added {quantity} {item}. The list has {total} items.",
    ),
    CatalogueTool(
        "call_contact(name: string)",
        "Phone a contact",
        "to call {name}",
        """Call {name}.|Phone {name}.|Give {name} a call.|Ring {name} now.|I want to talk to {name} on the phone.
Dial {name}.""",
        "connected at {time}",
        "You are connected with {name} since {time}.",
    ),
    CatalogueTool(
        "set_thermostat(room: string, degrees: number)",
        "Set the temperature of a room",
        "{degrees} degrees in the {room}",
        """Set the {room} to {degrees} degrees.|Heat the {room} to {degrees} degrees.
Make it {degrees} degrees in the {room}.
Thermostat: {room}, {degrees} degrees.|I want {degrees} degrees in the {room}.""",
        "ready at {time}",
        "The {room} has {degrees} degrees at {time}.",
    ),
    CatalogueTool(
        "track_parcel(code: string)",
        "Find out where a parcel is",
        "to track parcel {code}",
        """Where is my parcel {code}?|Track parcel {code}.|Track {code}.|Has the parcel {code} arrived?
Find my package {code}.|Parcel {code}?""",
        "in {place}, arrives {date}",
        "Parcel {code} is in {place} and arrives {date}.",
        pair="Track the parcels {0} and {1}.|Where are my parcels {0} and {1}?",
    ),
    CatalogueTool(
        "get_holidays(country: string, year: integer)",
        "Public holidays of a country",
        "the holidays of {country}",
        """Which public holidays does {country} have in {year}?|Holidays in {country} in {year}?
List the {year} holidays of {country}.|How many holidays are there in {country} in {year}?""",
        "{total} holidays, first {date}",
        "{country} has {total} holidays in {year}, the first on {date}.",
    ),
    CatalogueTool(
        "search_web(query: string)",
        "Search the web",
        "a web search for {query}",
        """Search the web for {query}.|Look up '{query}' online.|Google {query}.|Find pages about '{query}'.
Do a web search: {query}""",
        "{summary}",
        "The best page is '{summary}'.",
    ),
)
