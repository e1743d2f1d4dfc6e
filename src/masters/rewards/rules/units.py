"""Units of measurement, by the ways they are written."""

from __future__ import annotations

# Dimension: then each unit's size in the dimension's first one, and its spellings after it.
# Spellings in capitals and small letters are told apart (mW is no MW) unless they are words.
_TABLE = """
length: 1 m metre metres meter meters | 0.001 mm millimetre millimetres millimeter millimeters
 | 0.01 cm centimetre centimetres centimeter centimeters cms | 1000 km kilometre kilometres
 kilometer kilometers kms | 0.0254 in inch inches | 0.3048 ft foot feet | 0.9144 yd yard yards
 | 1609.344 mi mile miles | 1e-6 um μm micrometre micrometres micrometer micrometers
 | 1e-9 nm nanometre nanometres nanometer nanometers
area: 1 m2 m^2 sqm sq_m square_metres square_meters square_metre square_meter
 | 1e-4 cm2 cm^2 square_centimetres square_centimeters square_centimetre square_centimeter
 | 1e6 km2 km^2 square_kilometres square_kilometers | 0.09290304 ft2 ft^2 square_feet
 | 10000 ha hectare hectares | 4046.8564224 acre acres
mass: 1 g gram grams gramme grammes | 0.001 mg milligram milligrams | 1000 kg kgs kilogram
 kilograms kilo kilos | 1e6 t tonne tonnes | 453.59237 lb lbs pound pounds | 28.349523125 oz ounce
 ounces
volume: 1 l L litre litres liter liters | 0.001 ml mL millilitre millilitres milliliter
 milliliters cm3 cm^3 | 0.01 cl centilitre centilitres | 1000 m3 m^3 cubic_metres cubic_meters
time: 1 s sec secs second seconds | 0.001 ms millisecond milliseconds | 60 min mins minute minutes
 | 3600 h hr hrs hour hours | 86400 day days | 604800 week weeks
years: 1 year years yr yrs
months: 1 month months
speed: 1 m/s mps metres_per_second meters_per_second
 | 0.2777777777777778 km/h kmh kph kilometres_per_hour kilometers_per_hour | 0.44704 mph
 miles_per_hour
celsius: 1 °C ℃ celsius degrees_celsius degree_celsius
fahrenheit: 1 °F ℉ fahrenheit degrees_fahrenheit degree_fahrenheit
kelvin: 1 K kelvin kelvins
angle: 1 ° deg degree degrees | 57.29577951308232 rad radian radians
percent: 1 % percent per_cent pct
force: 1 N newton newtons | 1000 kN kilonewton kilonewtons
energy: 1 J joule joules | 1000 kJ kilojoule kilojoules | 3.6e6 kWh kilowatt_hours
power: 1 W watt watts | 0.001 mW milliwatt milliwatts | 1000 kW kilowatt kilowatts | 1e6 MW
 megawatt megawatts | 1e9 GW gigawatt gigawatts
voltage: 1 V volt volts | 0.001 mV millivolt millivolts | 1000 kV kilovolt kilovolts
current: 1 A amp amps ampere amperes | 0.001 mA milliamp milliamps milliampere milliamperes
resistance: 1 Ω ohm ohms | 1000 kΩ kiloohm kiloohms
frequency: 1 Hz hertz | 1000 kHz kilohertz | 1e6 MHz megahertz | 1e9 GHz gigahertz
bytes: 1 B byte bytes | 1e3 kB KB kilobyte kilobytes | 1e6 MB megabyte megabytes | 1e9 GB
 gigabyte gigabytes | 1e12 TB terabyte terabytes
dollars: 1 $ usd USD US$ dollar dollars | 0.01 ¢ cent cents
euros: 1 € eur EUR euro euros
sterling: 1 £ gbp GBP
yen: 1 ¥ jpy JPY yen
rupees: 1 ₹ inr INR rupee rupees
"""


def _read() -> dict[str, tuple[str, float]]:
    found: dict[str, tuple[str, float]] = {}
    for line in _TABLE.strip().replace("\n ", " ").splitlines():
        dimension, _, units = line.partition(": ")
        for unit in units.split(" | "):
            size, *spellings = unit.split()
            for spelling in spellings:
                found[spelling.replace("_", " ")] = (dimension, float(size))
    return found


_UNITS = _read()
CURRENCIES = frozenset({"dollars", "euros", "sterling", "yen", "rupees"})
"""Dimensions whose units may stand before the number."""
LONGEST = max(map(len, _UNITS))
"""Characters of the longest spelling."""


def unit(text: str) -> tuple[str, float] | None:
    """The dimension of a unit and its size in that dimension's own unit; None for no unit."""
    plain = " ".join(text.split()).rstrip(".")
    found = _UNITS.get(plain)
    # "CM" and "Kg" are no other unit; single letters and prefixes (mW, MW) must be as they are.
    small = plain.lower()
    if found is None and len(plain) > 1 and sum(key.lower() == small for key in _UNITS) == 1:
        return _UNITS.get(small)
    return found
