// Hydrogen, a complete Matrix client, already logged in as the demo's person and in the demo's room.
import { createNavigation, createRouter, FeatureSet, Platform, RootView, RootViewModel } from "hydrogen-view-sdk";
import downloadSandbox from "hydrogen-view-sdk/download-sandbox.html";
import "hydrogen-view-sdk/theme-element-light.css";

const SESSIONS = "hydrogen_sessions_v1";

// Without a service worker, which would outlive the demo in the browser; Hydrogen would tell it the access token.
class DemoPlatform extends Platform {
  get updateService() {
    return { updateAuthData() {}, checkForUpdate() {} };
  }

  // Hydrogen 0.3.1 can't show a table with line breaks between its tags, which are the usual way to write one.
  parseHTML(html) {
    return super.parseHTML(html.replace(/\s+(?=<\/?(?:table|thead|tbody|tr|th|td)\b)/g, ""));
  }
}

async function main(container) {
  const { room_id: roomId, ...session } = await (await fetch("session.json")).json();
  // Each start of the demo gives this device a new access token; what the browser has stored of the room stays good.
  localStorage.setItem(SESSIONS, JSON.stringify([{ ...session, homeServer: session.homeserver, lastUsed: Date.now() }]));
  const platform = new DemoPlatform({ container, assetPaths: { downloadSandbox }, config: { defaultHomeServer: session.homeserver } });
  const navigation = createNavigation();
  platform.setNavigation(navigation);
  await platform.init();
  const urlRouter = createRouter({ navigation, history: platform.history });
  urlRouter.attach();
  const model = new RootViewModel({ platform, navigation, urlRouter, features: await FeatureSet.load(platform.settingsStorage) });
  await model.load();
  navigation.applyPath(navigation.pathFrom([navigation.segment("session", session.id), navigation.segment("room", roomId)]));
  container.appendChild(new RootView(model).mount());
}

const container = document.querySelector("#app");
main(container).catch((error) => {
  container.textContent = `The client could not start: ${error.message}. Is the demo still running?`;
});
