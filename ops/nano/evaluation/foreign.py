"""Text of kinds that the model was never trained on, to see how sure its gates are of it."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping

GERMAN = (
    "Am frühen Morgen lag der Hafen noch im Nebel. Zwei Fischer standen am Kai, flickten ihre Netze und sprachen leise"
    " über das Wetter der letzten Woche.",
    "Die Bahn hatte wieder Verspätung, aber im Abteil war es warm. Eine ältere Frau bot den Kindern Äpfel an und"
    " erzählte, wie sie früher mit dem Fahrrad zur Schule gefahren war.",
    "Wer den Garten im Herbst umgräbt, hat im Frühjahr weniger Mühe. Trotzdem lassen viele das Laub liegen, damit Igel"
    " und Käfer darunter überwintern können.",
    "Der Bäcker an der Ecke schließt um sechs Uhr. Danach riecht die ganze Straße noch eine Weile nach frischem Brot,"
    " und die Katzen sitzen vor seiner Tür.",
    "Im Museum hängt ein Bild, das niemand erklären kann: ein leerer Stuhl, ein offenes Fenster und draußen ein Schiff,"
    " das gegen den Wind zu fahren scheint.",
    "Gestern haben wir die Brücke überquert, unter der früher die Mühle stand. Heute erinnert nur noch ein Rad aus"
    " Eichenholz an die Arbeit der Müller.",
)
FRENCH = (
    "Le marché ouvre à sept heures, quand les rues sont encore vides. Les marchands déballent leurs légumes et"
    " plaisantent entre eux avant l'arrivée des premiers clients.",
    "Elle avait gardé toutes les lettres de son frère dans une boîte en bois. Certaines étaient si abîmées qu'on ne"
    " pouvait plus lire que la date et la signature.",
    "Pendant l'été, le village se remplit de voyageurs qui cherchent l'ombre et le silence. En hiver, il n'y reste que"
    " trois familles et un chien très bavard.",
    "Le train s'est arrêté au milieu des champs sans raison apparente. Par la fenêtre, un garçon comptait les vaches et"
    " recommençait chaque fois qu'il se trompait.",
    "On raconte qu'un trésor dort au fond du lac, mais personne n'a jamais eu la patience de le chercher. Les pêcheurs"
    " disent qu'il vaut mieux attraper des truites.",
    "Quand la pluie commence, les enfants courent sous le grand arbre de la place. La boulangère leur apporte parfois"
    " un morceau de gâteau qui n'a pas été vendu.",
)
PIECE_BYTES = 500
PIECE_WORDS = 150


def foreign_texts(prose: str, num_pieces: int) -> Mapping[str, list[str]]:
    """Pieces by kind, seeded. prose: English text whose words are shuffled. German and French are short samples, the
    same whatever `num_pieces` is."""
    rng = random.Random("foreign text")
    words = prose.split()
    return {
        "German": list(GERMAN),
        "French": list(FRENCH),
        "shuffled words": [" ".join(rng.choices(words, k=PIECE_WORDS)) for _ in range(num_pieces)],
        "base64": [base64.b64encode(rng.randbytes(PIECE_BYTES)).decode() for _ in range(num_pieces)],
        "random bytes": [rng.randbytes(PIECE_BYTES).decode("latin-1") for _ in range(num_pieces)],
    }
