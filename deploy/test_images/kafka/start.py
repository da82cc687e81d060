"""Write server.properties from KAFKA_*, format the storage once, become the broker."""

import os
from pathlib import Path

JAVA = ["/opt/java/bin/java", "-Xmx512m", "-XX:+UseSerialGC", "-cp", "/opt/kafka/libs/*"]
LOG4J = """<Configuration status="ERROR">
<Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""

settings = {
    name.removeprefix("KAFKA_").lower().replace("_", "."): value
    for name, value in os.environ.items()
    if name.startswith("KAFKA_")
}
Path("server.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
Path("log4j2.xml").write_text(LOG4J)
JAVA.insert(1, "-Dlog4j2.configurationFile=log4j2.xml")
if not (Path(settings["log.dirs"]) / "meta.properties").exists():
    tool = ["kafka.tools.StorageTool", "format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", "server.properties"]
    assert os.spawnv(os.P_WAIT, JAVA[0], [*JAVA, *tool]) == 0
os.execv(JAVA[0], [*JAVA, "kafka.Kafka", "server.properties"])
