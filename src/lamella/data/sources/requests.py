"""Requests to a service desk, written by a small grammar: texts for demos and tests that need no download."""

from pathlib import Path

import torch

from lamella.common.randomness import generator
from lamella.data.scenario import Source
from lamella.data.texts import TextSet

__all__ = ["load_requests"]

TRAIN, TEST = 24, 12
"""The number of texts of each class."""

OPENINGS = ("", "", "", "hello, ", "hi there, ", "good morning, ", "please help: ", "quick question: ")
ENDINGS = ("", "", "", ", thanks", ", please", " as soon as possible", ", thank you very much")

SLOTS: dict[str, tuple[str, ...]] = {
    "device": ("laptop", "phone", "tablet", "work computer", "monitor", "headset"),
    "system": ("the portal", "my mailbox", "the wiki", "the payroll page", "the booking system", "the shared drive"),
    "month": ("January", "March", "May", "July", "September", "November"),
    "day": ("Monday", "Tuesday", "Thursday", "Friday", "tomorrow", "next week"),
    "city": ("Lisbon", "Oslo", "Vienna", "Leeds", "Turin", "Ghent"),
    "room": ("the large room", "room twelve", "the meeting room upstairs", "a quiet room", "the glass room"),
    "item": ("two chairs", "a standing desk", "printer paper", "a new badge", "a second screen", "some notebooks"),
    "person": ("my colleague", "our new trainee", "a visitor", "the auditor", "my manager"),
    "course": ("first aid", "data protection", "public speaking", "spreadsheets", "fire safety"),
}

INTENTS: dict[str, tuple[str, ...]] = {
    "password reset": ("I forgot the password for {system}", "{system} does not accept my password any more",
                       "how do I set a new password for {system}", "my login to {system} is locked"),
    "broken device": ("my {device} does not turn on", "the {device} is broken", "the screen of my {device} is cracked",
                      "my {device} keeps shutting down by itself"),
    "access request": ("{person} needs access to {system}", "who can open {system} for {person}",
                       "I am not allowed to see {system}", "please give {person} the rights for {system}"),
    "holiday": ("I want to take {day} off", "how many days of holiday do I have left in {month}",
                "can I move my vacation from {month} to {month}", "I would like to be on leave from {day}"),
    "sick note": ("I am ill and stay at home until {day}", "where do I send the note of my doctor",
                  "I have a fever and cannot come on {day}", "my child is sick, so I stay home {day}"),
    "pay slip": ("I did not get my pay slip for {month}", "where do I find the salary statement of {month}",
                 "there is a mistake in my pay for {month}", "when will the salary of {month} be paid"),
    "room booking": ("please book {room} for {day}", "is {room} free on {day}",
                     "I need {room} for a meeting on {day}", "cancel my booking of {room} on {day}"),
    "office supply": ("we need {item}", "can I order {item}", "where do I get {item}", "send {item} to my office"),
    "heating": ("it is far too cold in {room}", "the heating in {room} does not work",
                "the radiator in {room} makes a noise", "can somebody turn the temperature up in {room}"),
    "travel booking": ("I have to fly to {city} on {day}", "book a train to {city} for {day}",
                       "I need a hotel in {city} from {day}", "which airline should I take to {city}"),
    "travel expenses": ("how do I claim the taxi to {city}", "please refund my trip to {city} in {month}",
                        "where do I hand in the receipts from {city}", "my expenses for {city} were not paid back"),
    "visa": ("do I need a visa for {city}", "my passport runs out before the trip to {city}",
             "which papers do I need to work in {city}", "{person} needs an invitation letter for the embassy"),
    "training": ("I would like to attend the course on {course}", "is there a seminar about {course} in {month}",
                 "sign me up for {course}", "when is the next workshop on {course}"),
    "certificate": ("I did not receive my certificate for {course}", "please send proof that I passed {course}",
                    "my diploma for {course} shows the wrong name", "I lost the certificate of {course}"),
    "mentor": ("I am looking for a mentor", "can {person} coach me", "who could advise me on my career",
               "I would like to be a mentor for {person}"),
}  # fmt: skip


def load_requests(root: str | Path | None = None) -> Source:
    """Fifteen kinds of requests to the service desk of a company, in an order that keeps related ones together."""
    train, test = ([], []), ([], [])
    for label, (name, patterns) in enumerate(INTENTS.items()):
        texts = _written(name, patterns)
        for part, some in ((train, texts[:TRAIN]), (test, texts[TRAIN:])):
            part[0].extend(some)
            part[1].extend([label] * len(some))
    sets = [TextSet(texts, torch.tensor(labels)) for texts, labels in (train, test)]
    return Source("requests", sets[0], sets[1], tuple(INTENTS))


def _written(name: str, patterns: tuple[str, ...]) -> list[str]:
    """Different texts of one class, drawn from its patterns."""
    draws = generator(0, "requests", name)

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(torch.randint(len(choices), (), generator=draws))]

    found: dict[str, None] = {}
    while len(found) < TRAIN + TEST:
        text = pick(OPENINGS) + pick(patterns) + pick(ENDINGS)
        while "{" in text:
            slot = text[text.index("{") + 1 : text.index("}")]
            text = text.replace(f"{{{slot}}}", pick(SLOTS[slot]), 1)
        found[text] = None
    return list(found)
